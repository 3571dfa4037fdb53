//! Contexts from elsewhere, and what the provenance of an image says about them.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::world::{World, until};

/// Git's own server of everything below a folder, for as long as this lives.
struct Daemon {
    child: Child,
    url: String,
}

impl Daemon {
    fn start(root: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let programs = Command::new("git").arg("--exec-path").output().unwrap();
        let programs = String::from_utf8(programs.stdout).unwrap();
        let child = Command::new(Path::new(programs.trim()).join("git-daemon"))
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", root.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("Git's server answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let url = format!("git://127.0.0.1:{port}");
        Self { child, url }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an image's provenance says that it was made of, by name.
fn materials(world: &World, image: &str) -> Vec<Value> {
    let all = world.succeed(&["sbom", "--provenance", image]);
    let newest: Value = serde_json::from_str(&all).unwrap_or_else(|_| panic!("{all}"));
    let found = &newest["predicate"]["buildDefinition"]["resolvedDependencies"];
    let contexts = found.as_array().unwrap().iter();
    contexts
        .filter(|one| {
            let name = one["name"].as_str();
            name.is_some_and(|name| name.starts_with("context"))
        })
        .cloned()
        .collect()
}

fn bake(world: &World, tag: &str, context: &str, more: &[&str]) {
    let begin = ["bake", "--dockerfile", "Dockerfile", "--tag", tag];
    world.succeed(&[&begin[..], more, &[context]].concat());
}

#[test]
fn contexts_are_known_by_their_commit_or_by_what_was_taken() {
    let world = World::files();
    world.write("Dockerfile", "FROM scratch\nCOPY app /app\n");
    world.write(".dockerignore", "left-out\n");
    // In no repository: a digest of what was taken, which no other file changes.
    let digest = |tag: &str| {
        bake(&world, tag, ".", &[]);
        let found = materials(&world, tag);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["name"], "context");
        found[0]["digest"]["kilnFiles"].as_str().unwrap().to_owned()
    };
    let first = digest("a:1");
    world.write("beside", "x");
    assert_eq!(digest("a:2"), first);
    world.write("app/new", "x");
    assert_ne!(digest("a:3"), first);
    // In a clean one: its commit. In another the commit, and what was taken.
    let sha = world.commit();
    let commit = json!({"name": "context", "digest": {"gitCommit": sha}});
    // Images of the same content are one, with a statement for each bake.
    world.write("app/new", "other");
    let sha = world.commit();
    bake(&world, "b:1", ".", &[]);
    let clean = json!({"name": "context", "digest": {"gitCommit": sha}});
    let found = materials(&world, "b:1");
    assert_eq!((found.len(), &found[0]), (1, &clean));
    assert_ne!(clean, commit);
    world.write("app/new", "dirty");
    bake(&world, "b:2", ".", &[]);
    let dirty = materials(&world, "b:2");
    assert_eq!(dirty[0], clean);
    assert!(dirty[1]["digest"]["kilnFiles"].is_string(), "{dirty:?}");
}

#[test]
fn contexts_of_repositories_are_fetched_and_named() {
    let world = World::files();
    world.write("Dockerfile", "FROM scratch\nCOPY app /app\n");
    let sha = world.commit();
    let folder = world.path("x");
    let shop = folder.parent().unwrap();
    let daemon = Daemon::start(shop.parent().unwrap());
    let url = format!("{}/shop", daemon.url);
    bake(&world, "c:1", &url, &[]);
    let known = |name: &str| json!({"name": name, "uri": url, "digest": {"gitCommit": sha}});
    assert_eq!(materials(&world, "c:1"), [known("context")]);
    let of = |tag: &str| world.json(&["inspect", "--json", tag])["digest"].clone();
    bake(&world, "c:2", &format!("{url}#{sha}"), &[]);
    assert_eq!(of("c:1"), of("c:2"));
    // With its .git, where that is asked for.
    world.write("Dockerfile", "FROM scratch\nCOPY . /\n");
    let sha = world.commit();
    bake(&world, "c:3", &url, &[]);
    let keep = ["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    bake(&world, "c:4", &url, &keep);
    let told = world.succeed(&["diff", "c:3", "c:4"]);
    assert!(told.contains(".git/HEAD"), "{told}");
    // A repository and a folder as named contexts, also where an image stands.
    world.write(
        "Dockerfile",
        "FROM lib AS one\nFROM scratch\nCOPY --from=repo app /app\nCOPY --from=one / /lib\n",
    );
    world.write("lib/file", "of lib");
    let repo = format!("repo={url}#{sha}");
    let named = ["--build-context", &repo, "--build-context", "lib=lib"];
    bake(&world, "c:5", ".", &named);
    let found = materials(&world, "c:5");
    let names: BTreeSet<_> = found
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from(["context", "context lib", "context repo"])
    );
    let repo = json!({"name": "context repo", "uri": url, "digest": {"gitCommit": sha}});
    assert!(found.contains(&repo), "{found:?}");
    let out = shop.join("out.tar");
    let output = format!("tar:{}", out.display());
    bake(
        &world,
        "c:6",
        ".",
        &[&named[..], &["--output", &output]].concat(),
    );
    let listed = Command::new("tar").arg("-tf").arg(&out).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["app/index.html", "lib/file"] {
        assert!(listed.lines().any(|line| line.ends_with(name)), "{listed}");
    }
    // Nothing of what was fetched stays.
    assert_eq!(world.left(), BTreeSet::new());
    for (context, said) in [
        ("git@example.org:a.git", "--ssh default=KEYFILE a key"),
        ("https://example.org/a.git?x=1", "can't have `x`"),
    ] {
        let arguments = [
            "bake",
            "--dockerfile",
            "Dockerfile",
            "--tag",
            "c:7",
            context,
        ];
        let told = world.fail(&arguments, 1);
        assert!(told.contains(said), "{told}");
    }
}

#[test]
fn named_contexts_may_be_images() {
    let world = World::files();
    world.write("Dockerfile", "FROM scratch\nCOPY app /app\n");
    let folder = world.path("layout");
    let output = format!("oci:{}", folder.display());
    bake(&world, "d:1", ".", &["--output", &output]);
    world.write(
        "Dockerfile",
        "FROM base AS mine\nRUN [\"/never\"]\nFROM scratch\nCOPY --from=mine /app /one\nCOPY --from=other /app /two\n",
    );
    let mine = format!("mine=oci-layout://{}", folder.display());
    let other = ["--build-context", "other=docker-image://d:1"];
    let all = [&["--build-context", &mine][..], &other].concat();
    bake(&world, "d:2", ".", &all);
    let told = world.succeed(&["diff", "d:1", "d:2"]);
    for path in ["one/index.html", "two/index.html"] {
        assert!(told.contains(path), "{told}");
    }
}

#[test]
fn a_check_needs_no_secret() {
    let world = World::files();
    world.write("Dockerfile", "FROM scratch\nCOPY app /app\n");
    let arguments = |more: &'static str| {
        let secret = ["--secret", "id=a,src=/nowhere", "--ssh", "b=/nowhere"];
        [
            &["bake", "--dockerfile", "Dockerfile", "--tag", "e:1", more][..],
            &secret,
        ]
        .concat()
    };
    world.succeed(&arguments("--check"));
    let told = world.fail(&arguments("--json"), 64);
    assert!(told.contains("no file /nowhere"), "{told}");
}
