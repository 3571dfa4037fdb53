use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kiln_model::ReleaseNumber;
use kiln_model::api::{ErrorCode, InstanceState, RolloutResult};

use crate::load::Load;
use crate::world::{World, until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "bake_start_switch_and_stop_with_a_path_that_names_an_empty_folder_and_nothing_left",
        whole_loop,
    ),
    (
        "applies_and_rollbacks_under_load_lose_nothing",
        nothing_lost,
    ),
    (
        "never_ready_new_set_old_set_untouched_exit_code_and_reason_nothing_half_registered",
        never_ready,
    ),
    (
        "an_error_that_cannot_heal_is_told_within_seconds_not_at_the_deadline",
        fail_fast,
    ),
    (
        "the_current_release_is_itself_broken_it_can_be_rolled_back_and_rolled_forward",
        broken_current,
    ),
    ("same_release_applied_again_is_a_no_op", no_op),
    (
        "two_releases_deployed_at_once_the_second_is_refused",
        two_at_once,
    ),
    (
        "a_plan_made_before_the_world_changed_is_refused",
        stale_plan,
    ),
    ("services_find_each_other_by_name_through_a_switch", names),
    (
        "a_set_that_dies_after_the_switch_gives_the_traffic_back",
        dies_after_switch,
    ),
];

fn whole_loop() {
    let world = World::new();
    let first = world.apply(&world.spec("one")).unwrap();
    assert_eq!(
        (first.from, first.to, first.result),
        (None, Some(ReleaseNumber(1)), RolloutResult::Done)
    );
    assert_eq!(world.get("/").release, "app@1");
    let second = world.apply(&world.spec("two")).unwrap();
    assert_eq!(
        (second.from, second.to),
        (Some(ReleaseNumber(1)), Some(ReleaseNumber(2)))
    );
    assert_eq!(world.get("/env").body, b"two");
    assert_eq!(second.warm.unwrap().number, ReleaseNumber(1));
    let back = world.roll_back(None).unwrap();
    assert_eq!(
        (back.to, back.result),
        (Some(ReleaseNumber(1)), RolloutResult::Done)
    );
    assert_eq!(
        world.get("/env").body,
        b"one",
        "configuration goes back with the code"
    );
    assert!(
        back.duration_ms < 1000,
        "a warm rollback took {} ms",
        back.duration_ms
    );
    assert_eq!(world.down(), Default::default());
}

fn nothing_lost() {
    let world = World::new();
    world.apply(&world.spec("zero")).unwrap();
    let load = Load::start(world.listen);
    for round in 0..4 {
        world.apply(&world.spec(&format!("round-{round}"))).unwrap();
        world.roll_back(None).unwrap();
    }
    until("a thousand requests were served", || {
        load.served.load(Ordering::SeqCst) > 1000
    });
    let (served, lost) = load.end();
    assert_eq!(lost, Vec::<String>::new(), "{served} were served");
}

fn broken(world: &World, behaviour: &str) -> kiln_model::EnvironmentSpec {
    let mut spec = world.spec(behaviour);
    let service = spec.services.values_mut().next().unwrap();
    service
        .release
        .env
        .insert("BEHAVIOUR".into(), behaviour.into());
    service.policy.progress_deadline = Duration::from_secs(3);
    spec
}

/// `back` has no `listen`: only instances reach it.
fn names() {
    let world = World::new();
    let spec = |mark: &str| {
        let mut spec = world.spec("front");
        let mut back = world.spec(mark).services.into_values().next().unwrap();
        back.policy.listen = None;
        back.release.egress = false;
        spec.services.insert("back".parse().unwrap(), back);
        spec
    };
    let released = |number| {
        world.status().is_ok_and(|status| {
            let released = |name: &str, number| {
                status.services.iter().any(|service| {
                    let release = service.release.as_ref();
                    service.name.to_string() == name
                        && service.rollout.is_none()
                        && release.is_some_and(|release| release.number == ReleaseNumber(number))
                })
            };
            released("app", 1) && released("back", number)
        })
    };
    world.apply(&spec("one")).unwrap();
    until("both run", || released(1));
    for place in ["back:3000", "back.dev.kiln.internal:3000"] {
        let answer = world.get(&format!("/call/{place}"));
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.contains("back@1"), "{place}: {text}");
    }
    for place in [
        "nobody:3000",
        "back.staging.kiln.internal:3000",
        "back:3001",
    ] {
        let answer = world.get(&format!("/call/{place}"));
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("200"), "{place}: {text}");
    }
    // The name holds through a switch, and no call is lost by it.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let mut answers = std::collections::BTreeMap::new();
            while !done.load(Ordering::SeqCst) {
                let answer = world.get("/call/back:3000");
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                let release = ["back@1", "back@2"].into_iter().find(|r| text.contains(r));
                let release = release.unwrap_or_else(|| panic!("{text}"));
                *answers.entry(release).or_insert(0) += 1;
            }
            answers
        });
        world.apply(&spec("two")).unwrap();
        until("the second release runs", || released(2));
        let text = String::from_utf8_lossy(&world.get("/call/back:3000").body).into_owned();
        done.store(true, Ordering::SeqCst);
        assert!(text.contains("back@2"), "{text}");
        let answers = calls.join().unwrap();
        assert!(answers.contains_key("back@1"), "{answers:?}");
    });
}

fn never_ready() {
    let world = World::new();
    // Where nothing serves yet, clients wait while the first release starts, and are refused when it failed.
    let outcome = world.apply(&broken(&world, "never-ready")).unwrap();
    assert_eq!(outcome.result, RolloutResult::Failed);
    let refused = std::net::TcpStream::connect(world.listen).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    world.apply(&world.spec("good")).unwrap();
    let before = world.service().instances;
    let outcome = world.apply(&broken(&world, "never-ready")).unwrap();
    assert_eq!(outcome.result, RolloutResult::RolledBack);
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("GET /ready"), "{reason}");
    until("the old set is untouched and nothing else is left", || {
        world.service().instances == before
    });
    let service = world.service();
    assert_eq!(service.release.unwrap().number, ReleaseNumber(2));
    assert_eq!(world.get("/").release, "app@2");
}

fn fail_fast() {
    let world = World::new();
    world.apply(&world.spec("good")).unwrap();
    let mut spec = broken(&world, "exit");
    spec.services
        .values_mut()
        .next()
        .unwrap()
        .policy
        .progress_deadline = Duration::from_secs(60);
    let began = Instant::now();
    let outcome = world.apply(&spec).unwrap();
    assert_eq!(outcome.result, RolloutResult::RolledBack);
    let reason = outcome.reason.unwrap();
    assert!(
        reason.contains("code 3") && reason.contains("the configuration is missing"),
        "{reason}"
    );
    let mut spec = world.spec("no-command");
    spec.services.values_mut().next().unwrap().release.command = vec!["/nothing".into()];
    let outcome = world.apply(&spec).unwrap();
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("/nothing"), "{reason}");
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "told after {:?}",
        began.elapsed()
    );
}

fn broken_current() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    world.apply(&world.spec("two")).unwrap();
    until("the current set is not ready", || {
        world.get("/unready");
        world
            .service()
            .instances
            .iter()
            .filter(|i| i.release == ReleaseNumber(2))
            .all(|i| i.state == InstanceState::Unready)
    });
    assert_eq!(
        world.get("/").release,
        "app@2",
        "fail open: the least bad still gets it"
    );
    let forward = world.apply(&world.spec("three")).unwrap();
    assert_eq!(forward.result, RolloutResult::Done);
    let back = world.roll_back(Some(1)).unwrap();
    assert_eq!(
        (back.result, back.to),
        (RolloutResult::Done, Some(ReleaseNumber(1)))
    );
}

fn no_op() {
    let world = World::new();
    let spec = world.spec("same");
    world.apply(&spec).unwrap();
    let before = world.service();
    assert_eq!(world.plan(&spec).changes, []);
    assert_eq!(world.apply(&spec).unwrap().result, RolloutResult::Unchanged);
    assert_eq!(world.service(), before);
}

fn two_at_once() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.apply(&world.spec("two")));
        until("the rollout runs", || world.service().rollout.is_some());
        let refused = world.apply(&world.spec("three")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Busy, "{}", refused.message);
        assert_eq!(first.join().unwrap().unwrap().result, RolloutResult::Done);
    });
    assert_eq!(world.get("/env").body, b"two");
}

fn stale_plan() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let plan = world.plan(&world.spec("two"));
    world.apply(&world.spec("three")).unwrap();
    let refused = world.apply_plan(&plan).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StalePlan, "{}", refused.message);
    assert_eq!(world.get("/env").body, b"three");
}

fn dies_after_switch() {
    let world = World::new();
    world.apply(&world.spec("good")).unwrap();
    let mut spec = broken(&world, "dies-after-switch");
    let policy = &mut spec.services.values_mut().next().unwrap().policy;
    policy.soak = Duration::from_secs(2);
    policy.progress_deadline = Duration::from_secs(20);
    let load = Load::start(world.listen);
    let outcome = world.apply(&spec).unwrap();
    assert_eq!(outcome.result, RolloutResult::RolledBack);
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("code 8"), "{reason}");
    until("the old release has the traffic", || {
        world.get("/").release == "app@1"
    });
    load.end();
}
