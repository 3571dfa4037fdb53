//! What a person types after something of kiln ended, stopped, or lost its files. Needs root.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{World, processes, text, until};

/// The web server of the golden roots: its image is baked in a moment, and it answers with one character.
const DEFINITION: &str = r#"
project = "small"
variable "port" { type = number }
variable "release" {
  type    = string
  default = "1"
}
image "server" {
  version    = "1"
  dockerfile = "Dockerfile"
}
service "web" {
  image    = image.server
  replicas = 2
  port     = 3000
  listen   = "127.0.0.1:${var.port}"
  env      = { RELEASE = var.release }
  probe "ready" {
    http   = "/ready"
    period = "100ms"
  }
}
"#;

fn world() -> World {
    let world = World::files();
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/server");
    for name in ["Dockerfile", ".dockerignore", "server"] {
        std::fs::copy(server.join(name), world.path(name)).unwrap();
    }
    world.write("kiln.hcl", DEFINITION);
    world
}

impl World {
    fn pids(&self, command: &str) -> Vec<Pid> {
        processes(&self.root())
            .into_iter()
            .filter(|(_, arguments)| arguments.contains(&format!(" {command} ")))
            .map(|(pid, _)| pid)
            .collect()
    }

    fn signal(&self, command: &str, signal: Signal) {
        let pids = self.pids(command);
        assert!(!pids.is_empty(), "no `kiln {command}` runs");
        for pid in pids {
            kill_process(pid, signal).unwrap();
        }
    }

    fn kill(&self, command: &str) {
        self.signal(command, Signal::KILL);
        until(&format!("`kiln {command}` is gone"), || {
            self.pids(command).is_empty()
        });
    }

    fn problems(&self) -> Value {
        self.json(&["status", "--json"])["problems"].clone()
    }

    fn serves(&self, release: &str) {
        until(&format!("it serves {release}"), || {
            self.answer().is_some_and(|body| body.trim() == release)
        });
    }

    /// Sockets and locks; a mount point is in use and stays.
    fn remove_run(&self) {
        fn remove(folder: &Path) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    if entry.file_name() != "layers" {
                        remove(&entry.path());
                    }
                } else {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        remove(&self.root().join("run"));
    }
}

#[test]
fn up_starts_the_supervisor_that_is_gone() {
    let world = world();
    world.succeed(&["up", "--detach"]);
    world.kill("supervise");
    let problems = world.problems().to_string();
    assert!(problems.contains("no supervisor"), "{problems}");
    let said = world.succeed(&["up", "--detach"]);
    assert!(said.contains("without its supervisor"), "{said}");
    assert_eq!(world.problems(), Value::Array(vec![]));
    world.serves("1");

    // Nor does it matter what else is gone.
    world.kill("supervise");
    world.kill("proxy");
    world.succeed(&["up", "--detach", "--var", "release=2"]);
    world.serves("2");
    world.down();
}

#[test]
fn up_detached_returns_when_the_service_answers() {
    let world = world();
    world.succeed(&["up", "--detach"]);
    for command in ["supervise", "serve", "proxy", "shim"] {
        world.kill(command);
    }
    world.succeed(&["up", "--detach"]);
    assert!(world.answer().is_some());
    let status = world.json(&["status", "--json"]);
    let ready = status["services"][0]["instances"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|instance| instance["state"] == "ready")
        .count();
    assert_eq!(ready, 2, "{status}");
    world.down();
}

#[test]
fn a_root_whose_run_folder_was_emptied_can_be_taken_down_and_up() {
    let world = world();
    world.succeed(&["up", "--detach"]);
    world.remove_run();
    let begun = Instant::now();
    let output = world.kiln(&["down"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(begun.elapsed() < Duration::from_secs(40));
    assert!(text(&output.stderr).contains("instances go on"));
    assert_eq!(world.left(), BTreeSet::new());

    world.succeed(&["up", "--detach"]);
    world.remove_run();
    world.succeed(&["up", "--detach"]);
    world.serves("1");
    for command in ["supervise", "serve", "proxy"] {
        assert_eq!(world.pids(command).len(), 1, "{command}");
    }
    world.down();
}

#[test]
fn a_controller_that_was_stopped_is_told_and_taken_down() {
    let world = world();
    world.succeed(&["up", "--detach"]);
    world.signal("serve", Signal::STOP);
    let pid = world.pids("serve")[0].as_raw_nonzero();
    let begun = Instant::now();
    let said = world.fail(&["status"], 1);
    assert!(
        said.contains("did not answer within 10 s") && said.contains(&format!("kill -9 {pid}")),
        "{said}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(world.answer().is_some());
    world.down();
}

#[test]
fn a_journal_that_was_changed_is_told() {
    let world = world();
    world.succeed(&["up", "--detach"]);
    assert!(
        world
            .succeed(&["history", "--verify"])
            .contains("as it was written")
    );
    world.down();
    let journal = rusqlite::Connection::open(world.root().join("journal.db")).unwrap();
    let changed = journal
        .execute(
            "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), '\"remove\"', '\"remake\"') AS BLOB)
             WHERE CAST(body AS TEXT) LIKE '%\"remove\"%'",
            [],
        )
        .unwrap();
    assert!(changed > 0);
    drop(journal);
    let output = world.kiln(&["up", "--detach"]);
    assert!(output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("the journal was changed"), "{said}");
    let said = world.fail(&["history", "--verify"], 1);
    assert!(said.contains("the journal was changed"), "{said}");
    world.down();
}

#[test]
fn a_bake_without_the_cache_does_every_step_and_gives_the_same() {
    let world = world();
    let plain = r#"
image "plain" {
  version = "1"
  from    = "scratch"
  copy {
    from = "server"
    to   = "/server"
  }
  cmd = ["/server"]
}
"#;
    world.write("kiln.hcl", &format!("{DEFINITION}{plain}"));
    let bake = |more: &[&str]| {
        let answer = world.json(&[&["bake", "--json"], more].concat());
        let images = answer["images"].as_array().unwrap().clone();
        assert_eq!(images.len(), 2);
        let cached: Vec<bool> = images
            .iter()
            .flat_map(|image| image["steps"].as_array().unwrap().clone())
            .map(|step| step["cached"].as_bool().unwrap())
            .collect();
        let digests: Vec<String> = images
            .iter()
            .map(|image| image["digest"].to_string())
            .collect();
        (cached, digests)
    };
    let (first, digests) = bake(&[]);
    assert_eq!(first, [false, false]);
    assert_eq!(bake(&[]), (vec![true, true], digests.clone()));
    assert_eq!(bake(&["--no-cache"]), (vec![false, false], digests));
}
