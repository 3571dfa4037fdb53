//! Data roots that earlier versions of kiln wrote: see `tests/golden/README.md`. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::world::{World, text, until};

/// They are in the journals.
const WEB: &str = "127.83.41.1:18997";
const WARM: &str = "127.83.41.1:18998";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn goldens() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "zst"))
        .collect();
    found.sort();
    found
}

fn unpack(golden: &Path) -> World {
    let world = World::files();
    let bytes = zstd::decode_all(File::open(golden).unwrap()).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(world.root().parent().unwrap()).unwrap();
    for name in ["kiln.hcl", "Dockerfile", ".dockerignore", "server"] {
        std::fs::copy(folder().join("server").join(name), world.path(name)).unwrap();
    }
    world
}

/// The body of `/`, or nothing where nobody answers.
fn answer(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: golden\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200")
        .then(|| body.trim().to_owned())
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["services"]
        .as_array()
        .unwrap()
        .iter()
        .find(|service| service["name"] == name)
        .unwrap_or_else(|| panic!("no `{name}` in {status}"))
}

fn serves(release: &str) {
    for address in [WEB, WARM] {
        until(&format!("{address} answers with {release}"), || {
            answer(address).as_deref() == Some(release)
        });
    }
}

#[test]
fn a_root_of_an_earlier_kiln_opens_serves_and_rolls_back() {
    // Their addresses are the same, for every run on this machine.
    let turn = File::create(std::env::temp_dir().join("kiln-golden.lock")).unwrap();
    rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(!goldens().is_empty());
    for golden in goldens() {
        println!("{}", golden.display());
        opens_serves_and_rolls_back(&unpack(&golden));
    }
}

fn opens_serves_and_rolls_back(world: &World) {
    // As systemd starts it after a reboot.
    let mut supervisor = world.spawn(&["supervise"]);
    serves("2");

    let status = world.json(&["status", "--json"]);
    assert_eq!(status["problems"], Value::Array(vec![]));
    assert_eq!(status["services"].as_array().unwrap().len(), 2, "{status}");
    let last = &service(&status, "web")["last_rollout"];
    assert_eq!(
        (&last["from"], &last["to"], &last["result"]),
        (&2.into(), &3.into(), &"rolled_back".into())
    );
    assert!(
        last["reason"].as_str().unwrap().contains("GET /ready"),
        "{last}"
    );

    let history = world.json(&["history", "--json"]);
    let releases = |name: &str| -> Vec<(u64, bool)> {
        history["releases"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|release| release["service"] == name)
            .map(|release| {
                (
                    release["number"].as_u64().unwrap(),
                    release["current"].as_bool().unwrap(),
                )
            })
            .collect()
    };
    let three = [(3, false), (2, true), (1, false)];
    assert_eq!(releases("web"), three);
    assert_eq!(releases("warm"), three);
    let told = history["events"].to_string();
    for part in ["server:1-dirty", "release 3", "/ready", "signal 9"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(
        world
            .succeed(&["logs", "web"])
            .contains("listening, release 2")
    );

    // The same definition is the same release and the same policy: a later kiln replaces nothing by itself.
    let plan = world.kiln(&["plan", "--var", "release=2"]);
    assert_eq!(
        plan.status.code(),
        Some(0),
        "{}{}",
        text(&plan.stdout),
        text(&plan.stderr)
    );
    for name in ["web", "warm"] {
        let back = world.json(&["rollback", name, "--json"]);
        assert_eq!(
            (&back["from"], &back["to"], &back["result"]),
            (&2.into(), &1.into(), &"done".into()),
            "{back}"
        );
    }
    serves("1");
    world.succeed(&["apply", "--var", "release=4"]);
    serves("4");
    world.down();
    assert!(supervisor.wait().unwrap().success());
}
