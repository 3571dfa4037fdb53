use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kiln_model::ReleaseNumber;
use kiln_model::api::{ErrorCode, InstanceState, RolloutResult};

use crate::client;
use crate::load::Load;
use crate::world::{World, until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_killed_controller_is_back_and_adopts_with_the_same_pid_and_start",
        killed_controller,
    ),
    (
        "a_killed_proxy_is_back_and_serves_its_saved_table",
        killed_proxy,
    ),
    (
        "a_machine_reboot_brings_every_service_back_to_its_current_release",
        reboot,
    ),
    ("an_instance_that_dies_is_replaced", replaced),
    (
        "an_instance_that_dies_in_the_middle_of_an_answer_is_counted_once",
        half_answer,
    ),
    (
        "an_instance_that_fails_requests_is_seen_in_the_status_until_it_serves_again",
        ejected,
    ),
    (
        "a_port_that_is_taken_is_told_and_nothing_is_registered",
        port_taken,
    ),
    ("an_image_that_is_not_in_the_store_is_told", no_image),
    (
        "the_journal_says_what_happened_and_a_changed_entry_is_found",
        journal,
    ),
];

fn killed_controller() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let before = world.service().instances;
    let load = Load::start(world.listen);
    for _ in 0..3 {
        let old = world.process("serve");
        world.kill("serve");
        until("another controller answers", || {
            world.process("serve") != old && world.status().is_ok_and(|s| !s.services.is_empty())
        });
    }
    let served = load.served.load(Ordering::SeqCst);
    until("it goes on being served", || {
        load.served.load(Ordering::SeqCst) > served + 50
    });
    assert_eq!(world.service().instances, before);
    world.apply(&world.spec("two")).unwrap();
    let (_, lost) = load.end();
    assert_eq!(lost, Vec::<String>::new());
    assert_eq!(world.down(), BTreeSet::new());
}

fn killed_proxy() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    world.kill("proxy");
    until("it is served again", || {
        client::http(world.listen, "GET", "/", b"").is_ok_and(|a| a.release == "app@1")
    });
    assert_eq!(
        world.apply(&world.spec("two")).unwrap().result,
        RolloutResult::Done
    );
}

fn reboot() {
    let mut world = World::new();
    world.apply(&world.spec("one")).unwrap();
    world.apply(&world.spec("two")).unwrap();
    let before: BTreeSet<_> = world
        .service()
        .instances
        .into_iter()
        .map(|i| i.id)
        .collect();
    world.reboot();
    world.start();
    until("the current release serves", || {
        client::http(world.listen, "GET", "/", b"").is_ok_and(|answer| answer.release == "app@2")
    });
    until("all of it is ready", || {
        let ready = world
            .service()
            .instances
            .into_iter()
            .filter(|i| i.release == ReleaseNumber(2) && i.state == InstanceState::Ready);
        ready.count() == 2
    });
    assert!(
        world
            .service()
            .instances
            .iter()
            .all(|instance| !before.contains(&instance.id))
    );
    assert_eq!(
        world.apply(&world.spec("three")).unwrap().result,
        RolloutResult::Done
    );
}

fn replaced() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let before: BTreeSet<_> = world
        .service()
        .instances
        .into_iter()
        .map(|i| i.id)
        .collect();
    // Not idempotent, so the proxy does not ask the other one to die too.
    let _ = client::http(world.listen, "POST", "/die", b"");
    until("a new one is ready beside the survivor", || {
        let now: BTreeSet<_> = world
            .service()
            .instances
            .into_iter()
            .filter(|i| i.state == InstanceState::Ready)
            .map(|i| i.id)
            .collect();
        now.len() == 2 && now.intersection(&before).count() == 1
    });
}

fn half_answer() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let cut = client::http(world.listen, "GET", "/half", b"");
    assert!(cut.is_err(), "a cut answer never looks whole");
    until("the dead one is replaced", || {
        world
            .service()
            .instances
            .iter()
            .filter(|i| i.state == InstanceState::Ready)
            .count()
            == 2
    });
    assert_eq!(world.failed(), 1);
}

fn ejected() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let states = || {
        let instances = world.service().instances;
        instances.iter().map(|i| i.state).collect::<Vec<_>>()
    };
    until("an instance is ejected", || {
        let _ = client::http(world.listen, "GET", "/drop", b"");
        states().contains(&InstanceState::Ejected)
    });
    until("it serves again", || {
        let _ = client::http(world.listen, "GET", "/", b"");
        states() == [InstanceState::Ready; 2]
    });
}

fn port_taken() {
    let world = World::new();
    let taken = std::net::TcpListener::bind(world.listen).unwrap();
    let refused = world.apply(&world.spec("one")).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Precondition);
    assert!(
        refused.message.contains("taken") && refused.message.contains(&world.listen.to_string()),
        "{}",
        refused.message
    );
    assert!(world.status().unwrap().services.is_empty());
    drop(taken);
    assert_eq!(
        world.apply(&world.spec("one")).unwrap().result,
        RolloutResult::Done
    );
}

fn no_image() {
    let world = World::new();
    let mut spec = world.spec("one");
    spec.services.values_mut().next().unwrap().release.image = kiln_model::Digest::of(b"nowhere");
    let refused = world.apply(&spec).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Precondition);
    assert!(refused.message.contains("kiln bake"), "{}", refused.message);
}

fn journal() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let path = "/v1/history?environment=dev&service=app";
    let answer = client::unix(&world.socket(), "GET", path, b"").unwrap();
    let history: kiln_model::api::History = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(history.releases.len(), 1);
    let apply = history
        .events
        .iter()
        .find(|event| event.text == "apply of app:one")
        .expect("the apply is told");
    assert_eq!(apply.actor, Some(kiln_model::Actor::Uid(0)));
    let verified = client::unix(&world.socket(), "GET", "/v1/verify", b"").unwrap();
    assert_eq!(verified.status, 200);
    let db = rusqlite::Connection::open(world.root().join("journal.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    db.execute("UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'app:one', 'app:two') AS BLOB) WHERE state = 1", []).unwrap();
    let broken = client::unix(&world.socket(), "GET", "/v1/verify", b"").unwrap();
    assert_eq!(broken.status, 500);
    assert!(String::from_utf8_lossy(&broken.body).contains("entry 1"));
    // Nobody has to ask: the next controller looks by itself.
    let old = world.process("serve");
    world.kill("serve");
    until("the next controller tells it", || {
        world.process("serve") != old
            && world.status().is_ok_and(|status| {
                let problems = status.problems.join("\n");
                problems.contains("the journal was changed: entry 1 ")
            })
    });
}
