//! `kiln verify`: a second bake from the commit.

use crate::world::{DEFINITION, World};

fn tag(world: &World) -> String {
    let answer = world.json(&["bake", "--json"]);
    answer["images"][0]["tag"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_is_verified_by_baking_its_commit_again() {
    let world = World::new();
    let tag = tag(&world);
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
