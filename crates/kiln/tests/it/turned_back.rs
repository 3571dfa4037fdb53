//! What a person tries that does not work, and what it leaves behind: nothing. Needs root.

use std::net::{TcpListener, TcpStream};

use crate::world::{World, until};

/// The world's definition with parts of it written otherwise.
fn edit(world: &World, edits: &[(&str, &str)]) {
    let mut text = std::fs::read_to_string(world.path("kiln.hcl")).unwrap();
    for (part, other) in edits {
        assert!(text.contains(part), "the definition has {part}");
        text = text.replace(part, other);
    }
    world.write("kiln.hcl", &text);
}

const PORT: &str = "  port     = 3000\n";
const SOON: &str = "  port     = 3000\n  progress_deadline = \"3s\"\n";

#[test]
fn a_first_rollout_that_fails_leaves_its_port_free() {
    let world = World::new();
    world.succeed(&["up", "--detach"]);
    assert!(world.answer().is_some());
    world.succeed(&["down"]);
    let right = std::fs::read_to_string(world.path("kiln.hcl")).unwrap();
    for wrong in [r#"command = ["false"]"#, r#"command = ["/nothing"]"#] {
        edit(&world, &[(PORT, &format!("{SOON}  {wrong}\n"))]);
        let said = world.kiln(&["up", "--detach"]);
        assert_ne!(said.status.code(), Some(0), "{said:?}");
        until("nobody listens where nothing serves", || {
            TcpStream::connect(("127.0.0.1", world.port)).is_err()
        });
        world.write("kiln.hcl", &right);
    }
    world.succeed(&["up", "--detach"]);
    assert!(world.answer().is_some());
    world.down();
}

/// A probe that does not pass changes nothing: the old one stays, and nothing is replaced for the new one.
#[test]
fn a_probe_changed_to_a_wrong_one_is_told_and_not_taken() {
    let world = World::new();
    edit(&world, &[(PORT, SOON)]);
    world.succeed(&["up", "--detach"]);
    let instances = || world.json(&["status", "--json"])["services"][0]["instances"].clone();
    let before = instances();
    edit(&world, &[("\"/ready\"", "\"/nowhere\"")]);
    let said = world.kiln(&["apply"]);
    let text = format!("{said:?}");
    assert_eq!(said.status.code(), Some(3), "{text}");
    assert!(
        text.contains("GET /nowhere") && text.contains("did not change"),
        "{text}"
    );
    assert_eq!(instances(), before, "no instance was replaced");
    edit(&world, &[("\"/nowhere\"", "\"/ready\"")]);
    world.succeed(&["plan"]);
    world.down();
}

#[test]
fn listen_alone_is_done_when_clients_are_let_in_there() {
    let mut world = World::new();
    world.succeed(&["up", "--detach"]);
    let before = world.port;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    world.port = free.local_addr().unwrap().port();
    drop(free);
    world.succeed(&["apply"]);
    assert!(
        world.answer().is_some(),
        "when apply returns, the new address answers"
    );
    until("the old address is given up", || {
        TcpStream::connect(("127.0.0.1", before)).is_err()
    });
    world.down();
}
