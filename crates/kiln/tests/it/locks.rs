//! `kiln.lock` says what wrote the images, and the command line where that is another version of kiln.

use crate::world::{World, text};

const DEFINITION: &str = r#"
project = "shop"
image "web" {
  version = "1"
  from    = "scratch"
  copy {
    from = "app/"
    to   = "/srv"
  }
  cmd = ["/srv/index.html"]
}
"#;

const LOCK: &str = r#"{
  "format": 2,
  "compressor": "zstd 0.1, level 3",
  "tar": 0,
  "images": {
    "other": {
      "suite": "bookworm",
      "arch": "amd64",
      "requested": [],
      "date": 7,
      "packages": [
      ]
    }
  }
}
"#;

#[test]
fn a_lock_of_another_writer_is_told_until_it_is_this_ones() {
    let world = World::files();
    world.write("kiln.hcl", DEFINITION);
    world.write("app/index.html", "one");
    world.write("kiln.lock", LOCK);
    let said = || {
        let output = world.kiln(&["lock", "--check"]);
        let check = output.status.code();
        let error = text(&world.kiln(&["bake"]).stderr);
        (check, error)
    };
    let (check, error) = said();
    assert_eq!(check, Some(2));
    for part in [
        "another version of kiln",
        "version 0 of the tar writer and zstd 0.1, level 3",
        "`kiln lock`",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let lock = || std::fs::read_to_string(world.path("kiln.lock")).unwrap();
    assert_eq!(lock(), LOCK, "a bake does not move it in passing");
    world.succeed(&["lock"]);
    let version = format!("\"tar\": {}", kiln_oci::tar::VERSION);
    assert!(lock().contains(&version) && lock().contains("\"other\""));
    let (check, error) = said();
    assert_eq!(check, Some(0));
    assert!(!error.contains("another version"), "{error}");
}
