//! `kiln verify`: a second bake from the commit.

use kiln_oci::Store;

use crate::world::{DEFINITION, World};

fn tag(world: &World) -> String {
    let answer = world.json(&["bake", "--json"]);
    answer["images"][0]["tag"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_is_verified_by_baking_its_commit_again() {
    let world = World::new();
    let tag = tag(&world);
    // Others may say of it what they like.
    let store = Store::open_existing(&world.root()).unwrap();
    let digest = store.resolve(&tag).unwrap();
    let sbom = world.succeed(&["sbom", &tag]);
    for (kind, document) in [
        ("application/spdx+json", &b"[]"[..]),
        ("application/vnd.in-toto+json", b"no JSON"),
    ] {
        store.attach(&digest, kind, document).unwrap();
    }
    assert_eq!(world.succeed(&["sbom", &tag]), sbom);
    // What is in the folder now matters to nobody.
    world.write("kiln.hcl", "project = ");
    world.write("app/index.html", "other");
    let image = world.json(&["inspect", &tag, "--json"]);
    let steps: Vec<_> = image["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["step"].as_str().unwrap())
        .collect();
    assert!(steps[0].starts_with("debian bookworm"), "{steps:?}");
    assert_eq!(steps[steps.len() - 2..], ["user app", "copy app/ /srv"]);
    let commit = image["origin"]["commit"].as_str().unwrap();
    assert!(
        tag.ends_with(&commit[..12]) && image["origin"]["dirty"] == false,
        "{image}"
    );
    assert_eq!(image["tags"][0], tag.as_str());
    assert_eq!(image["config"]["user"], "app");
    assert!(
        image["packages"].as_u64().unwrap() > 50
            && image["referrers"].as_array().unwrap().len() >= 2
    );
    assert!(image["releases"].is_null(), "kiln is not running");
    assert_eq!(world.json(&["inspect", "web", "--json"]), image);
    let error = world.fail(&["inspect", "wbe"], 1);
    assert!(error.contains("no image `wbe`"), "{error}");
    let shown = world.succeed(&["inspect", &tag]);
    assert!(
        shown.contains("copy app/ /srv") && shown.contains(commit),
        "{shown}"
    );
    let said = world.succeed(&["verify", &tag]);
    assert!(
        said.contains("gives the same image again, sha256:"),
        "{said}"
    );
    assert!(
        said.contains("/usr/bin/busybox") || !said.contains("statically"),
        "{said}"
    );
    assert_eq!(
        world.left(),
        Default::default(),
        "nothing of the second bake is left"
    );

    world.write("kiln.hcl", DEFINITION);
    let dirty = self::tag(&world);
    let error = world.fail(&["verify", &dirty], 1);
    assert!(
        error.contains("no commit has") && error.contains("commit the definition"),
        "{error}"
    );
    let error = world.fail(&["verify", &tag, "--file", "/"], 1);
    assert!(error.contains("is in no Git repository"), "{error}");
}

#[test]
fn what_a_second_bake_makes_otherwise_is_named_with_its_cause() {
    let world = World::new();
    let steps = r#"  run = ["date > /srv/date", "nproc > /srv/cores", "head -c 64 /dev/urandom > /srv/random", "env | sort > /srv/env; hostname > /srv/host"]
"#;
    world.write(
        "kiln.hcl",
        &DEFINITION.replace("  run_as = \"app\"\n", steps),
    );
    world.commit();
    let tag = tag(&world);
    let output = world.kiln(&["verify", &tag, "--json"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["same"], false);
    assert_ne!(answer["digest"], answer["rebaked"]);
    let found: Vec<(&str, &str)> = answer["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["path"].as_str().unwrap(),
                one["cause"].as_str().unwrap(),
            )
        })
        .collect();
    let mut expected = vec![
        ("/srv/date", "a time of day"),
        ("/srv/random", "random bytes"),
    ];
    if std::thread::available_parallelism().unwrap().get() > 1 {
        expected.insert(1, ("/srv/cores", "the number of processors"));
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((path, cause), (wanted, why)) in found.iter().zip(&expected) {
        assert!(path == wanted && cause.contains(why), "{found:#?}");
    }
}

/// Paths with causes.
fn causes(answer: &serde_json::Value) -> Vec<(&str, &str)> {
    let differences = answer["differences"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| -> &'static str {
        Box::leak(value.as_str().unwrap().to_owned().into_boxed_str())
    };
    differences
        .map(|one| (text(&one["path"]), text(&one["cause"])))
        .collect()
}

fn bake_dockerfile(world: &World, tag: &str, more: &[&str]) {
    // Its newest tag.
    let of_image = self::tag(world);
    let base = format!("debian:bookworm={}", of_image.rsplit_once(':').unwrap().0);
    let mut arguments = vec!["bake", "--dockerfile", "docker/Dockerfile", "--tag", tag];
    arguments.extend(["--base", &base]);
    arguments.extend(more);
    world.succeed(&arguments);
}

#[test]
fn a_dockerfiles_image_is_verified_with_its_bases_and_arguments() {
    let world = World::new();
    world.write(
        "docker/Dockerfile",
        "ARG FROM=debian:bookworm\n\
         FROM $FROM AS build\n\
         USER root\n\
         RUN ls -1 /usr | sort > /out\n\
         FROM debian:bookworm AS web\n\
         USER root\n\
         ARG WORD\n\
         COPY --from=build /out /srv/out\n\
         COPY . /srv/app\n\
         RUN { hostname; cat /proc/sys/kernel/hostname; id -un; pwd; umask; env | sort; echo $WORD; } > /srv/seen\n\
         FROM nowhere AS never\n",
    );
    // Files that are not baked don't make it dirty.
    world.write("docker/Dockerfile.dockerignore", "target\nroot\n.git\n");
    world.write("target/x", "built");
    world.commit();
    world.write("target/x", "built again");
    let more = ["--target", "web", "--build-arg", "WORD=given", "."];
    bake_dockerfile(&world, "web:2", &more);
    // What is in the folder now matters to nobody.
    world.write("docker/Dockerfile", "FROM");
    world.write("app/index.html", "other");
    let said = world.succeed(&["verify", "web:2"]);
    assert!(said.contains("gives the same image again"), "{said}");
    assert!(said.contains("host name, file system"), "{said}");
    assert_eq!(world.left(), Default::default());
    assert!(!said.contains("once more"), "{said}");
    // It was the second bake of a commit, and not the cache's answer.
    let error = world.fail(&["verify", "web:2", "--file", "/"], 1);
    assert!(error.contains("is in no Git repository"), "{error}");
}

#[test]
fn what_a_dockerfile_makes_otherwise_each_time_is_named() {
    let world = World::new();
    world.write(
        "docker/Dockerfile",
        "FROM debian:bookworm\n\
         USER root\n\
         COPY . /context\n\
         RUN date > /srv/date; nproc > /srv/cores\n\
         RUN mkdir /srv/d && cd /srv/d && for i in $(seq 100); do echo > $i-$((i * 7919 % 101)); done; ls -U > /srv/order\n",
    );
    world.commit();
    bake_dockerfile(&world, "web:2", &["."]);
    let output = world.kiln(&["verify", "web:2", "--json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut expected = vec![
        ("/context/.git", ".dockerignore"),
        ("/srv/date", "a time of day"),
        ("/srv/order", "another order"),
    ];
    if std::thread::available_parallelism().unwrap().get() > 1 {
        expected.insert(1, ("/srv/cores", "the number of processors"));
    }
    let found = causes(&answer);
    assert_eq!(found.len(), expected.len(), "{found:#?}\n{error}");
    for ((path, cause), (wanted, why)) in found.iter().zip(&expected) {
        assert!(path == wanted && cause.contains(why), "{found:#?}");
    }
    assert_eq!(world.left(), Default::default());
}

#[test]
fn a_dockerfiles_image_that_no_commit_has_all_of_says_what_is_missing() {
    let world = World::new();
    world.write("docker/Dockerfile", "FROM debian:bookworm\nCOPY app /srv\n");
    bake_dockerfile(&world, "dirty:1", &["."]);
    let error = world.fail(&["verify", "dirty:1"], 1);
    assert!(
        error.contains("no commit has: of `") && error.contains(".dockerignore"),
        "{error}"
    );
    world.write(".dockerignore", ".git\n");
    world.commit();
    world.write("word", "hidden12");
    let cases: [(&str, &[&str], &str); 3] = [
        ("a:1", &["--secret", "id=word,src=word"], "the secret word"),
        (
            "a:2",
            &["--build-context", "more=app"],
            "the named context more",
        ),
        (
            "a:3",
            &["--build-arg", "API_TOKEN=x"],
            "build argument API_TOKEN",
        ),
    ];
    world.write(".dockerignore", ".git\nword\n");
    world.commit();
    for (tag, more, why) in cases {
        bake_dockerfile(&world, tag, &[more, &["."]].concat());
        let error = world.fail(&["verify", tag], 1);
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(world.left(), Default::default());
}

/// An index that is fetched is valid for days, as Debian's is: a clock that is a year ahead would end the step.
#[test]
fn a_step_that_used_the_network_has_the_machines_clock() {
    let world = World::new();
    let days = std::time::Duration::from_secs(10 * 86_400);
    let until = (std::time::SystemTime::now() + days)
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    world.write(".dockerignore", ".git\nroot\n");
    let valid = format!("[ $(date +%s) -lt {} ]", until.as_secs());
    let asks = "bash -c 'echo ? > /dev/udp/192.0.2.1/9'";
    world.write(
        "docker/Dockerfile",
        &format!("FROM debian:bookworm\nUSER root\nRUN {asks}; {valid} && date +%Y > /dev/null\nRUN touch /made\n"),
    );
    world.commit();
    bake_dockerfile(&world, "asks:1", &["."]);
    let answer = world.json(&["verify", "asks:1", "--json"]);
    assert_eq!(answer["same"], true, "{answer}");
    assert_eq!(answer["other_clock"], true, "{answer}");
    let used = answer["used_network"].as_array().unwrap();
    assert_eq!(used.len(), 1, "{answer}");
    assert!(used[0].as_str().unwrap().contains(asks), "{answer}");
    assert_eq!(world.left(), Default::default());
}

#[test]
fn a_definitions_image_of_a_dockerfile_is_verified() {
    let world = World::new();
    let image = "image \"site\" {\n  version = \"1\"\n  dockerfile = \"docker/Dockerfile\"\n  args = { WORD = \"a\" }\n}\n\
                 bases = { \"debian:bookworm\" = image.web }\n";
    world.write("kiln.hcl", &format!("{DEFINITION}{image}"));
    world.write(".dockerignore", ".git\nroot\n");
    world.write(
        "docker/Dockerfile",
        "FROM debian:bookworm\nUSER root\nARG WORD\nCOPY app /srv\nRUN echo $WORD > /srv/word; ls /etc > /srv/list\n",
    );
    world.commit();
    let answer = world.json(&["bake", "site", "--json"]);
    let tag = answer["images"][0]["tag"].as_str().unwrap();
    assert!(!tag.contains("dirty"), "{tag}");
    world.write("docker/Dockerfile", "FROM scratch\n");
    let answer = world.json(&["verify", tag, "--json"]);
    assert_eq!(answer["same"], true, "{answer}");
    assert_eq!(answer["other_clock"], false, "it saw how it is moved");
    assert_eq!(world.left(), Default::default());
}
