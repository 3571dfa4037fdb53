//! Right definitions, and the spec that each becomes.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_config::{ConfigErrors, Inputs, Loaded, Outside, Source, VariableOrigin, VariableValue};
use kiln_model::{
    BlueGreen, CopySpec, DebianOrigin, DebianSpec, HttpProbe, Policy, Resources, Strategy, Tmpfs,
    UnknownFields, UserSpec,
};

pub(crate) const EXAMPLE: &str = r#"
project = "shop"

variable "greeting" {
  type        = string
  default     = "hello"
  description = "What the service says"
}
variable "replicas" { default = 3 }
variable "loud" { default = false }

image "api" {
  version = "1.4.0"
  debian {
    suite    = "bookworm"
    packages = ["python3", "libstdc++6"]
    mirror   = "https://mirror.example.org/debian"
    keyring  = "keys/mirror.asc"
  }
  user "app" {
    uid = 1000
    gid = 1001
  }
  copy {
    from  = "app/"
    to    = "/opt/app"
    owner = "app"
  }
  copy {
    from = "motd"
    to   = "/etc/motd"
  }
  run         = ["echo ${var.greeting} > /etc/greeting", "true"]
  run_as      = "app"
  env         = { LANG = "C.UTF-8" }
  entrypoint  = ["python3"]
  cmd         = ["/opt/app/server.py"]
  labels      = { "org.example.team" = "shop", n = 1 }
  workdir     = "/opt/app"
  stop_signal = "SIGINT"
  allow_leak  = ["private-key:/opt/app/test.key"]
}

service "api" {
  image    = image.api
  replicas = var.replicas
  port     = 3000
  listen   = 8080
  env      = { GREETING = "${var.greeting}, world", LOUD = var.loud, N = "${var.replicas}" }
  command  = ["python3", "/opt/app/other.py"]
  egress   = false
  tmpfs "/var/cache/api" { size = "64MiB" }
  resources {
    memory = "256MiB"
    cpus   = 0.5
    pids   = 128
  }
  probe "ready" {
    http   = "/ready"
    period = "250ms"
  }
  probe "live" {
    http      = "/health?deep=1"
    timeout   = "2s"
    successes = 1
    failures  = 5
  }
  strategy "blue-green" { keep_warm = "1h30m" }
  drain { deadline = "45s" }
  progress_deadline = "2m"
  soak              = "1s"
  stop_grace        = "5s"
}

service "worker" { image = image.api }

environment "staging" {}
environment "production" {
  service "api" {
    replicas = 6
    listen   = "127.0.0.1:80"
    env      = { LOUD = "yes" }
    resources { memory = "1GiB" }
    probe "ready" { failures = 9 }
  }
}
"#;

/// A folder with a few files, and an environment with one variable.
pub(crate) struct Folder;

impl Outside for Folder {
    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let text: &[u8] = match path {
            "hello.txt" => b"hello\n",
            "binary" => b"\xff\x00",
            "list.tpl" => b"%{ for name in names ~}\n- ${upper(name)}\n%{ endfor ~}\n",
            "plain.tpl" => b"${name}",
            "wrong.tpl" => b"one\n  ${nmae}\n",
            "torn.tpl" => b"one ${",
            _ => return Err("there is no such file".to_owned()),
        };
        Ok(text.to_vec())
    }

    fn files(&self, folder: &str) -> Result<Vec<String>, String> {
        let all = ["binary", "hello.txt", "list.tpl", "sub/deep/x.txt"];
        match folder {
            "" => Ok(all.map(str::to_owned).to_vec()),
            "sub" => Ok(vec!["deep/x.txt".to_owned()]),
            _ => Err("there is no such folder".to_owned()),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        (name == "REGION").then(|| "eu".to_owned())
    }

    fn date(&self) -> Option<i64> {
        Some(1_700_000_000)
    }
}

pub(crate) fn load(source: &Source, inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
    kiln_config::load(vec![source.clone()], inputs, &Folder)
}

pub(crate) fn inputs(environment: &str) -> Inputs {
    Inputs {
        environment: environment.parse().unwrap(),
        variables: BTreeMap::new(),
    }
}

fn read(environment: &str, variables: &[(&str, &str, VariableOrigin)]) -> Loaded {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: EXAMPLE.to_owned(),
    };
    let variables = variables
        .iter()
        .map(|(name, text, origin)| {
            (
                (*name).to_owned(),
                VariableValue {
                    text: (*text).to_owned(),
                    origin: *origin,
                },
            )
        })
        .collect();
    match load(
        &source,
        &Inputs {
            variables,
            ..inputs(environment)
        },
    ) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{errors}"),
    }
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn an_image_says_everything_that_is_baked() {
    let loaded = read("dev", &[]);
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let spec = loaded.spec;
    assert_eq!(spec.project.as_str(), "shop");
    let names: Vec<&str> = spec
        .environments
        .iter()
        .map(kiln_model::EnvName::as_str)
        .collect();
    assert_eq!(names, ["staging", "production"]);
    let image = &spec.images[&"api".parse().unwrap()];
    assert_eq!(image.version, "1.4.0");
    assert_eq!(
        image.debian,
        Some(DebianSpec {
            suite: "bookworm".into(),
            packages: vec!["python3".into(), "libstdc++6".into()],
            components: vec!["main".into()],
            arch: None,
            recommends: false,
            updates: true,
            security: true,
            slim: false,
            essential: true,
            origin: DebianOrigin::Mirror {
                url: "https://mirror.example.org/debian".into(),
                security: None,
            },
            keyring: Some("keys/mirror.asc".into()),
        })
    );
    assert_eq!(
        image.users,
        [UserSpec {
            name: "app".into(),
            uid: 1000,
            gid: Some(1001)
        }]
    );
    assert_eq!(
        image.copies,
        [
            CopySpec {
                from: "app/".into(),
                to: "/opt/app".into(),
                owner: Some("app".into())
            },
            CopySpec {
                from: "motd".into(),
                to: "/etc/motd".into(),
                owner: None
            },
        ]
    );
    assert_eq!(image.run, ["echo hello > /etc/greeting", "true"]);
    assert_eq!(image.run_as.as_deref(), Some("app"));
    assert_eq!(image.env, map(&[("LANG", "C.UTF-8")]));
    assert_eq!(image.entrypoint, ["python3"]);
    assert_eq!(image.cmd, ["/opt/app/server.py"]);
    assert_eq!(
        image.labels,
        map(&[("org.example.team", "shop"), ("n", "1")])
    );
    assert_eq!(image.workdir.as_deref(), Some("/opt/app"));
    assert_eq!(image.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.allow_leak, ["private-key:/opt/app/test.key"]);
}

#[test]
fn a_service_says_everything_that_runs() {
    let spec = read("dev", &[]).spec;
    let api = &spec.services[&"api".parse().unwrap()];
    assert_eq!(api.image.as_str(), "api");
    assert_eq!(api.command, ["python3", "/opt/app/other.py"]);
    assert_eq!(
        api.env,
        map(&[("GREETING", "hello, world"), ("LOUD", "false"), ("N", "3")])
    );
    assert_eq!(api.port, Some(3000));
    assert!(!api.egress);
    assert_eq!(
        api.tmpfs,
        BTreeMap::from([("/var/cache/api".to_owned(), Tmpfs::of(64 << 20))])
    );
    assert_eq!(
        api.resources,
        Resources {
            memory: Some(256 << 20),
            cpu_millis: Some(500),
            pids: Some(128),
            ..Resources::default()
        }
    );
    let seconds = Duration::from_secs;
    assert_eq!(
        api.policy,
        Policy {
            replicas: 3,
            strategy: Strategy::BlueGreen(BlueGreen {
                keep_warm: seconds(5400)
            }),
            ready: Some(HttpProbe {
                path: "/ready".into(),
                period: Duration::from_millis(250),
                timeout: seconds(1),
                successes: 2,
                failures: 3,
            }),
            live: Some(HttpProbe {
                path: "/health?deep=1".into(),
                period: seconds(1),
                timeout: seconds(2),
                successes: 1,
                failures: 5,
            }),
            progress_deadline: seconds(120),
            soak: seconds(1),
            drain_deadline: seconds(45),
            stop_grace: seconds(5),
            listen: Some("0.0.0.0:8080".parse().unwrap()),
            unknown: UnknownFields::default(),
        }
    );
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let spec = read("dev", &[]).spec;
    let worker = &spec.services[&"worker".parse().unwrap()];
    assert_eq!(
        (&worker.command, worker.port, &worker.env),
        (&Vec::new(), None, &BTreeMap::new())
    );
    assert_eq!(worker.resources, Resources::default());
    assert!(worker.egress);
    let seconds = Duration::from_secs;
    assert_eq!(
        worker.policy,
        Policy {
            replicas: 1,
            strategy: Strategy::BlueGreen(BlueGreen {
                keep_warm: seconds(900)
            }),
            ready: None,
            live: None,
            progress_deadline: seconds(60),
            soak: Duration::from_millis(500),
            drain_deadline: seconds(30),
            stop_grace: seconds(10),
            listen: None,
            unknown: UnknownFields::default(),
        }
    );
}

#[test]
fn an_environment_changes_only_what_it_names() {
    let dev = read("dev", &[]).spec;
    let staging = read("staging", &[]).spec;
    assert_eq!(dev.services, staging.services);
    let name = "api".parse().unwrap();
    let mut expected = dev.services[&name].clone();
    expected.policy.replicas = 6;
    expected.policy.listen = Some("127.0.0.1:80".parse().unwrap());
    expected.env.insert("LOUD".into(), "yes".into());
    expected.resources.memory = Some(1 << 30);
    if let Some(probe) = &mut expected.policy.ready {
        probe.failures = 9;
    }
    assert_eq!(read("production", &[]).spec.services[&name], expected);
}

#[test]
fn variables_come_from_outside_in_their_type() {
    let given = [
        ("greeting", "1", VariableOrigin::Argument),
        ("replicas", "5", VariableOrigin::Environment),
        ("loud", "true", VariableOrigin::Environment),
    ];
    let spec = read("dev", &given).spec;
    let api = &spec.services[&"api".parse().unwrap()];
    assert_eq!(api.policy.replicas, 5);
    assert_eq!(
        api.env,
        map(&[("GREETING", "1, world"), ("LOUD", "true"), ("N", "5")])
    );
    assert_eq!(
        spec.images[&"api".parse().unwrap()].run[0],
        "echo 1 > /etc/greeting"
    );
}

/// What the documents and the examples say is what is read.
#[test]
fn the_documents_sample_and_the_examples_are_right() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = std::fs::read_to_string(top.join("docs/definition.md")).unwrap();
    let sample = document
        .split("```hcl\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let mut texts = vec![("docs/definition.md".to_owned(), sample.to_owned())];
    for entry in std::fs::read_dir(top.join("examples")).unwrap() {
        let path = entry.unwrap().path().join("kiln.hcl");
        texts.push((
            path.display().to_string(),
            std::fs::read_to_string(&path).unwrap(),
        ));
    }
    assert!(texts.len() >= 2);
    for (name, text) in texts {
        if let Err(errors) = load(&Source { name, text }, &inputs("dev")) {
            panic!("{errors}");
        }
    }
}

#[test]
fn an_image_may_be_a_dockerfiles() {
    let source = Source {
        name: "kiln.hcl".into(),
        text: r#"
            project = "shop"
            bases   = { "debian:bookworm" = image.base, alpine = "oci:alpine" }
            image "base" {
              version = "1"
              debian { suite = "bookworm" }
            }
            image "api" {
              version    = "1.2"
              dockerfile = "app/Dockerfile"
              context    = "app"
              target     = "last"
              args       = { A = "b", N = 1 }
              allow_leak = ["private-key:/k"]
              test "there" { present = ["/bin/sh"] }
            }
            service "api" { image = image.api }
        "#
        .into(),
    };
    let spec = load(&source, &inputs("dev")).unwrap().spec;
    let image = &spec.images[&"api".parse().unwrap()];
    let expected = kiln_model::DockerfileSpec {
        file: "app/Dockerfile".into(),
        context: "app".into(),
        target: Some("last".into()),
        args: map(&[("A", "b"), ("N", "1")]),
    };
    assert_eq!(image.dockerfile.as_ref(), Some(&expected));
    assert_eq!((image.tests.len(), image.allow_leak.len()), (1, 1));
    let base = kiln_model::BaseSpec::Image("base".parse().unwrap());
    assert_eq!(spec.bases["debian:bookworm"], base);
    let alpine = kiln_model::BaseSpec::Reference("oci:alpine".into());
    assert_eq!(spec.bases["alpine"], alpine);
}
