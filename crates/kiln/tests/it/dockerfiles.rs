//! A definition whose images are Dockerfiles', on each other.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use crate::world::{World, interrupt, until};

const DEFINITION: &str = r#"
project = "shop"
variable "port" { type = number }
bases = { "shop/base:1" = image.base }
image "base" {
  version    = "1"
  dockerfile = "base/Dockerfile"
  context    = "base"
}
image "web" {
  version    = "1.0.0"
  dockerfile = "Dockerfile"
  target     = "web"
  args       = { BASE = "shop/base:1" }
  test "has its files" { present = ["/srv/index.html"] }
  test "answers" {
    http {
      path   = "/"
      status = 200
    }
  }
}
image "page" {
  version    = "1"
  dockerfile = "page.Dockerfile"
  context    = "page"
}
service "web" {
  image  = image.web
  port   = 3000
  listen = "127.0.0.1:${var.port}"
}
"#;
const BASE: &str = "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\n";
const WEB: &str = "ARG BASE\nFROM $BASE AS web\nCOPY app /srv\nUSER 1000\n\
    CMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"3000\", \"-h\", \"/srv\"]\nFROM web AS never\nRUN [\"/none\"]\n";

#[test]
fn dockerfiles_are_baked_tested_and_served() {
    let world = World::files();
    world.write("kiln.hcl", DEFINITION);
    world.write("Dockerfile", WEB);
    world.write(".dockerignore", "base\n");
    world.write("base/Dockerfile", BASE);
    world.write("page.Dockerfile", "FROM shop/base:1\nCOPY . /page\n");
    world.write("page/index.html", "page");
    let busybox = world.path("base/busybox");
    std::fs::copy("/bin/busybox", busybox).expect("this test needs busybox-static");
    let sha = world.commit();
    let up = world.succeed(&["up", "--detach"]);
    assert!(
        up.contains(&format!("http://127.0.0.1:{}/", world.port)),
        "{up}"
    );
    assert_eq!(world.answer().as_deref(), Some("one\n"));
    // Again, where nothing changed: every step from the cache, the tests not run again, and nothing to do.
    let baked = world.json(&["bake", "--json", "web"]);
    let images = baked["images"].as_array().unwrap();
    assert_eq!(images.len(), 1, "the base was not asked for: {baked}");
    assert_eq!(images[0]["tag"], format!("web:1.0.0-{}", &sha[..12]));
    let steps = images[0]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 3, "{baked}");
    assert!(steps.iter().all(|step| step["cached"] == true), "{baked}");
    world.fail(&["plan"], 0);
    world.write("app/index.html", "two\n");
    let tag = &world.json(&["bake", "--json", "web"])["images"][0]["tag"];
    assert!(tag.as_str().unwrap().contains("-dirty."), "{tag}");
    world.succeed(&["apply"]);
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    // What stands on a base that no commit has is no commit's either, and neither is what an ignore file beside it makes.
    let page = |world: &World| {
        let baked = world.json(&["bake", "--json", "page"]);
        baked["images"][0]["tag"].as_str().unwrap().to_owned()
    };
    assert_eq!(page(&world), format!("page:1-{}", &sha[..12]));
    for path in ["base/new", "page.Dockerfile.dockerignore"] {
        world.write(path, "new");
        assert!(page(&world).contains("-dirty."), "{path}");
        std::fs::remove_file(world.path(path)).unwrap();
    }
    // What is wrong in a Dockerfile, in a test, and in a circle of bases.
    world.write(
        "Dockerfile",
        &format!("{WEB}FROM web\nCOPY nothing /\n").replace("AS web", "AS wob"),
    );
    let said = world.fail(&["apply"], 1);
    assert!(said.contains("no stage `web`"), "{said}");
    world.write(
        "Dockerfile",
        &WEB.replace("COPY app /srv", "COPY app /elsewhere"),
    );
    let said = world.fail(&["apply"], 1);
    assert!(said.contains("has its files"), "{said}");
    world.write("base/Dockerfile", "FROM shop/base:1\n");
    let said = world.fail(&["bake"], 1);
    assert!(said.contains("in a circle: base, on base"), "{said}");
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    world.succeed(&["down"]);
    // The log of the test that failed.
    assert_eq!(world.left(), BTreeSet::from(["tests".to_owned()]));
}

#[test]
fn a_context_may_be_an_archive() {
    let world = World::files();
    world.write(
        "base/Dockerfile",
        &format!("{BASE}COPY d /d\nCOPY .. /all\n"),
    );
    world.write("base/.dockerignore", "all\n");
    world.write("base/d/file", "text");
    let folder = world.path("base/Dockerfile");
    let folder = folder.parent().unwrap();
    std::fs::hard_link(folder.join("d/file"), folder.join("d/a-name-before")).unwrap();
    std::os::unix::fs::symlink("../../../../etc/passwd", folder.join("d/link")).unwrap();
    std::fs::copy("/bin/busybox", folder.join("busybox")).expect("this test needs busybox-static");
    world.write("base/busybox.Dockerfile", "FROM scratch\nCOPY busybox /\n");
    let pack = |name: &str, arguments: &[&str]| {
        let path = world.path(name);
        let status = Command::new("tar")
            .args(arguments)
            .arg(&path)
            .arg(".")
            .current_dir(folder)
            .status();
        assert!(status.unwrap().success());
        path
    };
    let bake = |context: &str, tag: &str, stdin: Stdio| {
        let arguments = [
            "bake",
            "--dockerfile",
            "Dockerfile",
            "--tag",
            tag,
            "--json",
            context,
        ];
        world.command(&arguments).stdin(stdin).output().unwrap()
    };
    let digest = |output: &Output| {
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        answer["images"][0]["digest"].as_str().unwrap().to_owned()
    };
    pack("c.tar.xz", &["-cJf"]);
    let first = digest(&bake("c.tar.xz", "c:1", Stdio::null()));
    let plain = pack("c.tar", &["-cf"]);
    let stdin = std::fs::File::open(&plain).unwrap();
    let second = digest(&bake("-", "c:2", stdin.into()));
    assert_eq!(first, second, "the same files are the same image");
    // And as a folder, where the Dockerfile is a file of the caller's.
    let arguments = [
        "bake",
        "--dockerfile",
        "base/Dockerfile",
        "--tag",
        "c:3",
        "--json",
        "base",
    ];
    assert_eq!(digest(&world.command(&arguments).output().unwrap()), first);
    // Nothing of it stays, and what is wrong has the name that was typed.
    assert_eq!(world.left(), BTreeSet::new());
    std::fs::write(&plain, "no tar at all").unwrap();
    let said = bake("c.tar", "c:4", Stdio::null());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(
        said.contains("c.tar") && said.contains("no tar in gzip"),
        "{said}"
    );
    world.write("base/Dockerfile", "FROM scratch\nCOPY none /\n");
    pack("c.tar", &["-cf"]);
    let said = bake("c.tar", "c:4", Stdio::null());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("--> Dockerfile:2:6"), "{said}");
    std::fs::remove_file(folder.join("Dockerfile")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("Dockerfile")).unwrap();
    pack("c.tar", &["-cf"]);
    let said = bake("c.tar", "c:4", Stdio::null());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("leads out of the context"), "{said}");
    std::fs::remove_file(folder.join("Dockerfile")).unwrap();
    world.write("base/Dockerfile", "FROM scratch\nCOPY . /\n");
    std::fs::remove_file(folder.join(".dockerignore")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join(".dockerignore")).unwrap();
    pack("c.tar", &["-cf"]);
    let said = bake("c.tar", "c:4", Stdio::null());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(
        said.contains(".dockerignore") && said.contains("leads out of the context"),
        "{said}"
    );
    std::fs::remove_file(folder.join(".dockerignore")).unwrap();
    // A bake that is ended while its context comes leaves nothing of it.
    let child = world
        .command(&["bake", "--dockerfile", "Dockerfile", "--tag", "c:5", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let work = world.root().join("work");
    until("the context is read", || {
        let mut entries = std::fs::read_dir(&work).unwrap().map(Result::unwrap);
        entries.any(|entry| entry.path().join("context").exists())
    });
    interrupt(&child);
    let said = child.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(130));
    world.succeed(&[
        "bake",
        "--dockerfile",
        "base/busybox.Dockerfile",
        "--tag",
        "c:6",
        "base",
    ]);
    assert_eq!(world.left(), BTreeSet::new());
}
