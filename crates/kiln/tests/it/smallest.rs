//! Images with hardly anything in them: baked, written out, served.

use kiln_oci::{Kind, Store};

use crate::world::World;

const SERVICE: &str = r#"
service "web" {
  image  = image.web
  port   = 3000
  listen = "127.0.0.1:${var.port}"
  probe "ready" {
    http   = "/ready"
    period = "100ms"
  }
}
"#;

/// Bakes, writes and serves the image that `base` begins with; `absent` are paths that it must not have.
fn serves(base: &str, busybox: &str, absent: &[&str]) {
    let world = World::files();
    let definition = format!(
        r#"
project = "shop"
variable "port" {{ type = number }}
image "web" {{
  version = "1"
  {base}
  copy {{
    from = "app/"
    to   = "/srv"
  }}
  cmd = ["{busybox}", "httpd", "-f", "-p", "3000", "-h", "/srv"]
}}
{SERVICE}"#
    );
    world.write("kiln.hcl", &definition);
    std::fs::copy("/bin/busybox", world.path("busybox")).expect("this test needs busybox-static");
    world.succeed(&["bake", "--output", "oci:out"]);
    let layout: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("out/index.json")).unwrap()).unwrap();
    let digest = layout["manifests"][0]["digest"].as_str().unwrap();
    let store = Store::open_existing(&world.root()).unwrap();
    let image = store.image(&digest.parse().unwrap()).unwrap();
    let trees: Vec<_> = image
        .layers
        .iter()
        .map(|layer| store.layer_tree(layer).unwrap())
        .collect();
    let tree = kiln_oci::Tree::merge(&trees).unwrap();
    for path in absent {
        assert!(tree.get(path).is_none(), "{path} is in the image");
    }
    let program = tree.get(busybox).unwrap();
    assert!(matches!(program.kind, Kind::File { .. }));
    world.succeed(&["up", "--detach"]);
    assert_eq!(world.answer().as_deref(), Some("one\n"));
    world.down();
}

#[test]
fn a_static_program_alone_is_served() {
    let copied = r#"from = "scratch"
  copy {
    from = "busybox"
    to   = "/busybox"
  }"#;
    serves(copied, "/busybox", &["usr", "bin", "lib", "var"]);
}

#[test]
fn a_program_with_what_it_needs_alone_is_served() {
    let packages = r#"debian {
    suite     = "bookworm"
    packages  = ["busybox"]
    essential = false
  }"#;
    let absent = ["usr/bin/dash", "usr/bin/dpkg", "usr/bin/perl", "etc/apt"];
    serves(packages, "/usr/bin/busybox", &absent);
}

#[test]
fn a_slim_image_is_served() {
    let slim = r#"debian {
    suite    = "bookworm"
    packages = ["busybox-static"]
    slim     = true
  }"#;
    let absent = [
        "usr/share/man/man1",
        "usr/share/doc/busybox-static/changelog.Debian.gz",
    ];
    serves(slim, "/usr/bin/busybox", &absent);
}
