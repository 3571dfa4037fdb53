//! `test` blocks of images.

use std::time::Duration;

use kiln_config::Source;
use kiln_model::{CommandCheck, FileCheck, HttpCheck, TestSpec, TextCheck, Tmpfs};

use crate::accepted::{inputs, load};

const DEFINITION: &str = r#"
project = "shop"
image "api" {
  version = "1"
  debian { suite = "bookworm" }
  cmd = ["server"]
  test "answers" {
    timeout = "5s"
    env     = { LEVEL = "debug" }
    ports   = [3000, 3001]
    http { path = "/health" }
    http {
      path     = "/old?x=1"
      port     = 3001
      status   = 301
      headers  = { location = "/new" }
      contains = "moved"
      matches  = ["^<", ">$"]
    }
  }
  test "holds" {
    run = ["true", "false || true"]
    command {
      argv = ["server", "--version"]
      user = "nobody"
      exit = 2
      stdout { equals = "1.0" }
      stderr { contains = ["a", "b"] }
    }
    file "/etc/motd" {
      owner  = "root"
      group  = 0
      mode   = "0644"
      equals = ""
    }
    present         = "/bin/sh"
    absent          = ["/usr/sbin/sshd"]
    packages        = ["python3"]
    packages_absent = ["openssh-server"]
  }
}
image "worker" {
  version = "1"
  from    = image.api
}
service "api" {
  image = image.api
  port  = 8000
  tmpfs "/var/cache" { size = "1MiB" }
}
service "mirror" {
  image = image.api
  port  = 8000
  tmpfs "/var/lib" { size = "2MiB" }
}
"#;

fn read(text: &str) -> Result<kiln_config::Loaded, String> {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: text.to_owned(),
    };
    load(&source, &inputs("dev")).map_err(|errors| errors.to_string())
}

fn text(contains: &[&str], matches: &[&str], equals: Option<&str>) -> TextCheck {
    TextCheck {
        contains: contains.iter().map(|part| (*part).to_owned()).collect(),
        matches: matches.iter().map(|part| (*part).to_owned()).collect(),
        equals: equals.map(str::to_owned),
    }
}

#[test]
fn a_test_says_what_has_to_hold_and_has_port_and_tmpfs_of_the_services() {
    let text_of = |line: &str| DEFINITION.replace("group  = 0", line);
    let spec = read(&text_of("group  = \"0\"")).unwrap().spec;
    let image = &spec.images[&"api".parse().unwrap()];
    let tmpfs = [("/var/cache", 1 << 20), ("/var/lib", 2 << 20)]
        .map(|(path, size)| (path.to_owned(), Tmpfs::of(size)));
    let shell = |line: &str| CommandCheck {
        argv: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        user: None,
        exit: 0,
        stdout: TextCheck::default(),
        stderr: TextCheck::default(),
    };
    let none = TestSpec {
        name: String::new(),
        timeout: Duration::from_secs(30),
        env: Default::default(),
        port: Some(8000),
        tmpfs: tmpfs.into(),
        commands: Vec::new(),
        http: Vec::new(),
        ports: Vec::new(),
        files: Default::default(),
        present: Vec::new(),
        absent: Vec::new(),
        packages: Vec::new(),
        packages_absent: Vec::new(),
    };
    let answers = TestSpec {
        name: "answers".into(),
        timeout: Duration::from_secs(5),
        env: [("LEVEL".to_owned(), "debug".to_owned())].into(),
        ports: vec![3000, 3001],
        http: vec![
            HttpCheck {
                path: "/health".into(),
                port: None,
                status: 200,
                body: TextCheck::default(),
                headers: Default::default(),
            },
            HttpCheck {
                path: "/old?x=1".into(),
                port: Some(3001),
                status: 301,
                body: text(&["moved"], &["^<", ">$"], None),
                headers: [("location".to_owned(), "/new".to_owned())].into(),
            },
        ],
        ..none.clone()
    };
    let holds = TestSpec {
        name: "holds".into(),
        commands: vec![
            shell("true"),
            shell("false || true"),
            CommandCheck {
                argv: ["server", "--version"].map(str::to_owned).to_vec(),
                user: Some("nobody".into()),
                exit: 2,
                stdout: text(&[], &[], Some("1.0")),
                stderr: text(&["a", "b"], &[], None),
            },
        ],
        files: [(
            "/etc/motd".to_owned(),
            FileCheck {
                owner: Some("root".into()),
                group: Some("0".into()),
                mode: Some(0o644),
                content: text(&[], &[], Some("")),
            },
        )]
        .into(),
        present: vec!["/bin/sh".into()],
        absent: vec!["/usr/sbin/sshd".into()],
        packages: vec!["python3".into()],
        packages_absent: vec!["openssh-server".into()],
        ..none
    };
    assert_eq!(image.tests, [answers, holds]);
    // The tests of an image are of that image, and not of those that start from it.
    let worker = &spec.images[&"worker".parse().unwrap()];
    assert!(worker.tests.is_empty() && worker.base.as_ref().unwrap().tests.is_empty());
    assert!(
        read(DEFINITION)
            .unwrap_err()
            .contains("`group` of `file \"/etc/motd\"`")
    );
}

#[test]
fn the_port_of_a_test_is_that_of_its_services_where_they_agree() {
    let right = DEFINITION.replace("group  = 0", "");
    let image = "api".parse().unwrap();
    let alone = right.replacen(
        "port  = 8000\n  tmpfs \"/var/lib\"",
        "port  = 8001\n  tmpfs \"/var/lib\"",
        1,
    );
    let error = read(&alone).unwrap_err();
    assert!(
        error.contains("`http` in `test \"answers\"`") && error.contains("add `port = 8000`"),
        "{error}"
    );
    let written = alone.replace(
        "path = \"/health\"",
        "\n path = \"/health\"\n port = 8001\n",
    );
    assert_eq!(
        read(&written).unwrap().spec.images[&image].tests[0].port,
        None
    );
}
