//! A definition whose images are Dockerfiles', on each other.

use std::collections::BTreeSet;

use crate::world::World;

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
    // What is wrong in a Dockerfile, in a test, and in a circle of bases.
    world.write(
        "Dockerfile",
        &format!("{WEB}FROM web\nCOPY nothing /\n").replace("AS web", "AS wob"),
    );
    let said = world.fail(&["apply"], 1);
    assert!(
        said.contains("Dockerfile:1:1") || said.contains("no stage `web`"),
        "{said}"
    );
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
