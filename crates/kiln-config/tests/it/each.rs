//! `for_each`: one block, many images or services.

use kiln_config::{ConfigErrors, Source};
use kiln_model::ProjectSpec;

use crate::accepted::{inputs, load};

const REGIONS: &str = r#"
project = "p"
variable "regions" {
  type    = map(object({ replicas = number, host = string }))
  default = { eu = { replicas = 2, host = "eu.example.org" }, us = { replicas = 1, host = "us.example.org" } }
}
image "base" {
  version = "1"
  debian { suite = "sid" }
  cmd = ["base"]
}
image "api" {
  for_each = var.regions
  version  = "1-${each.key}"
  debian { suite = "sid" }
  env = { HOST = each.value.host }
  cmd = ["api", each.key]
}
service "api" {
  for_each = var.regions
  image    = image.api[each.key]
  replicas = each.value.replicas
  env      = { ALL = join(",", keys(image.api)) }
}
service "job" {
  for_each = toset(["b", "a", "b"])
  image    = image.base
  command  = [each.key, each.value]
}
environment "production" {
  service "api" {
    replicas = each.value.replicas * 10
    env      = { WHERE = each.key }
  }
  service "api-us" { replicas = 7 }
}
"#;

fn read(text: &str, environment: &str) -> Result<ProjectSpec, ConfigErrors> {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: text.to_owned(),
    };
    load(&source, &inputs(environment)).map(|loaded| loaded.spec)
}

#[test]
fn each_key_has_an_image_and_a_service_of_its_own() {
    let spec = read(REGIONS, "dev").unwrap();
    let images: Vec<&str> = spec.images.keys().map(|name| name.as_str()).collect();
    assert_eq!(images, ["api-eu", "api-us", "base"]);
    let eu = &spec.images[&"api-eu".parse().unwrap()];
    assert_eq!((eu.name.as_str(), eu.version.as_str()), ("api-eu", "1-eu"));
    assert_eq!(eu.env["HOST"], "eu.example.org");
    assert_eq!(eu.cmd, ["api", "eu"]);
    let services: Vec<(&str, &str, u32)> = spec
        .services
        .iter()
        .map(|(name, service)| {
            (
                name.as_str(),
                service.image.as_str(),
                service.policy.replicas,
            )
        })
        .collect();
    assert_eq!(
        services,
        [
            ("api-eu", "api-eu", 2),
            ("api-us", "api-us", 1),
            ("job-a", "base", 1),
            ("job-b", "base", 1)
        ]
    );
    assert_eq!(
        spec.services[&"api-us".parse().unwrap()].env["ALL"],
        "eu,us"
    );
    assert_eq!(spec.services[&"job-b".parse().unwrap()].command, ["b", "b"]);
}

#[test]
fn an_environment_changes_all_of_them_or_one() {
    let spec = read(REGIONS, "production").unwrap();
    let (eu, us) = (
        &spec.services[&"api-eu".parse().unwrap()],
        &spec.services[&"api-us".parse().unwrap()],
    );
    assert_eq!((eu.policy.replicas, us.policy.replicas), (20, 7));
    assert_eq!(
        (eu.env["WHERE"].as_str(), us.env["WHERE"].as_str()),
        ("eu", "us")
    );
    // Whichever comes first in the text.
    let swapped = REGIONS
        .replace("  service \"api-us\" { replicas = 7 }\n", "")
        .replace(
            "environment \"production\" {\n",
            "environment \"production\" {\n  service \"api-us\" { replicas = 7 }\n",
        );
    assert_eq!(read(&swapped, "production").unwrap(), spec);
}

#[test]
fn what_is_wrong_with_for_each_is_shown() {
    for (from, to, parts) in [
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "for_each = [\"b\", \"a\", \"b\"]",
            &[
                "`b` in `for_each` of `service \"job\"` is defined twice",
                "toset",
            ][..],
        ),
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "for_each = 3",
            &["expected a map or a list of strings"],
        ),
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "for_each = [1]",
            &["an item of `for_each`"],
        ),
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "for_each = [\"B\"]",
            &["the service name", "`job-B`"],
        ),
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "count = 2",
            &["not supported", "`for_each` for more services"],
        ),
        (
            "for_each = toset([\"b\", \"a\", \"b\"])",
            "for_each = sensitive([\"b\"])",
            &["a sensitive value"],
        ),
        (
            "image.api[each.key]",
            "image.api",
            &["is a map", "choose one of them: image.NAME[\"eu\"]"],
        ),
        (
            "image.api[each.key]",
            "image.api[\"ue\"]",
            &["there is no key `ue`", "write `eu`"],
        ),
        (
            "image \"base\"",
            "image \"api-eu\"",
            &["`image \"api-eu\"` is defined twice", "NAME-KEY"],
        ),
        (
            "each.value.replicas * 10",
            "each.value.replica * 10",
            &["write `replicas`"],
        ),
        (
            "service \"api-us\" {",
            "service \"api-uk\" {",
            &["write `service \"api-us\"`"],
        ),
        (
            "    replicas = each.value.replicas * 10",
            "    for_each = {}",
            &["it belongs to the service at the top"],
        ),
        (
            "image    = image.base",
            "image    = each.image",
            &["there is no key `image`"],
        ),
    ] {
        assert!(REGIONS.contains(from), "{from}");
        let text = REGIONS.replacen(from, to, 1);
        let errors = read(&text, "production").unwrap_err();
        for part in parts {
            assert!(
                errors.to_string().contains(part),
                "{to}: no {part:?} in:\n{errors}"
            );
        }
    }
    // A `for_each` that is wrong is all that is wrong.
    let text = REGIONS.replacen("for_each = var.regions", "for_each = var.regoins", 1);
    let errors = read(&text, "dev").unwrap_err();
    assert_eq!(errors.diagnostics.len(), 1, "{errors}");
}

const BASES: &str = r#"
project = "p"
image "app" {
  version = "2"
  from    = image.base
  env     = { B = "app" }
  run     = ["two"]
  labels  = { l = "app" }
  cmd     = ["app"]
}
image "base" {
  version = "1"
  debian { suite = "sid" }
  user "app" { uid = 1000 }
  run        = ["one"]
  run_as     = "app"
  env        = { A = "base", B = "base" }
  labels     = { k = "base", l = "base" }
  entrypoint = ["start"]
  cmd        = ["base"]
  workdir    = "/srv"
  allow_leak = ["password:/etc/x"]
}
image "edge" {
  for_each = ["x"]
  version  = "3"
  from     = image.app
}
"#;

#[test]
fn an_image_starts_from_another_whatever_the_order_is() {
    let spec = read(BASES, "dev").unwrap();
    let app = &spec.images[&"app".parse().unwrap()];
    let base = &spec.images[&"base".parse().unwrap()];
    assert_eq!(app.base.as_deref(), Some(base));
    assert_eq!(app.debian, base.debian);
    assert_eq!(
        (app.env["A"].as_str(), app.env["B"].as_str()),
        ("base", "app")
    );
    assert_eq!(
        (app.labels["k"].as_str(), app.labels["l"].as_str()),
        ("base", "app")
    );
    assert_eq!(
        (&app.run, &app.run_as),
        (&vec!["two".to_owned()], &base.run_as)
    );
    assert_eq!(app.workdir, base.workdir);
    assert_eq!(app.allow_leak, ["password:/etc/x"]);
    assert_eq!(
        (&app.entrypoint, &app.cmd),
        (&base.entrypoint, &vec!["app".to_owned()])
    );
    // What an entry point is replaced by has arguments of its own.
    let own = BASES.replace("cmd     = [\"app\"]", "entrypoint = [\"other\"]");
    let spec = read(&own, "dev").unwrap();
    let app = &spec.images[&"app".parse().unwrap()];
    assert_eq!(
        (app.entrypoint.as_slice(), app.cmd.as_slice()),
        (&["other".to_owned()][..], &[][..])
    );
    let edge = &spec.images[&"edge-x".parse().unwrap()];
    let names: Vec<&str> = edge
        .chain()
        .iter()
        .map(|image| image.name.as_str())
        .collect();
    assert_eq!(names, ["base", "app", "edge-x"]);
}

#[test]
fn what_is_wrong_with_a_base_is_shown() {
    let circle = "  debian { suite = \"sid\" }\n";
    for (from, to, count, parts) in [
        (
            circle,
            "  from = image.edge[\"x\"]\n",
            3,
            &["the image `app` depends on itself", "the image `edge-x`"][..],
        ),
        (
            circle,
            "  from = image.base\n",
            1,
            &["the image `base` depends on itself"],
        ),
        (
            "from    = image.base",
            "from    = image.bsae",
            1,
            &["write `image.base`"],
        ),
        (
            "from    = image.base",
            "from    = \"base\"",
            1,
            &["write image.base, without quotes"],
        ),
        (
            "from    = image.base",
            "from = image.base\n  debian { suite = \"sid\" }",
            1,
            &["both `from` and `debian`"],
        ),
        (
            "from     = image.app",
            "from     = image.edge",
            1,
            &["choose one of them"],
        ),
    ] {
        assert!(BASES.contains(from), "{from}");
        let errors = read(&BASES.replacen(from, to, 1), "dev").unwrap_err();
        for part in parts {
            assert!(
                errors.to_string().contains(part),
                "{to}: no {part:?} in:\n{errors}"
            );
        }
        assert_eq!(errors.diagnostics.len(), count, "{errors}");
    }
    let mut long = String::from(
        "project = \"p\"\nimage \"i0\" {\n  version = \"1\"\n  debian { suite = \"sid\" }\n}\n",
    );
    for n in 1..40 {
        long.push_str(&format!(
            "image \"i{n}\" {{\n  version = \"1\"\n  from = image.i{}\n}}\n",
            n - 1
        ));
    }
    let errors = read(&long, "dev").unwrap_err();
    assert_eq!(errors.diagnostics.len(), 1, "{errors}");
    assert!(
        errors
            .to_string()
            .contains("the chain of images below `i16`"),
        "{errors}"
    );
}

#[test]
fn images_go_through_each_other_wherever_they_stand() {
    let text = r#"
project = "shop"
image "a" {
  for_each = image.b
  from     = image.b[each.key]
  version  = "1"
}
image "b" {
  for_each = image.c
  version  = "1"
  debian { suite = "bookworm" }
}
image "c" {
  for_each = toset(["x", "y"])
  version  = "1"
  debian { suite = "bookworm" }
}
service "s" {
  image   = image.a["x"]
  command = ["/s"]
  port    = 3000
}
environment "production" {}
"#;
    let spec = read(text, "production").unwrap();
    let names: Vec<_> = spec.images.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["a-x", "a-y", "b-x", "b-y", "c-x", "c-y"]);
    assert_eq!(spec.services.len(), 1);
    // Nothing is left out without a word.
    for other in ["image.a", "keys(image.b)"] {
        let text = text.replace("for_each = image.c", &format!("for_each = {other}"));
        let message = read(&text, "production").unwrap_err().to_string();
        assert!(message.contains("depends on itself"), "{message}");
    }
}
