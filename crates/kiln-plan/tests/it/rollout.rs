use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{
    ExitReason, InstanceEnd, Probed, ReleaseNumber, StartFailure, StartFault, Unready, Why,
};
use kiln_plan::{Action, Event, Notice, Refusal};

use crate::script::{
    DRAIN, PROGRESS, ROLLBACK, SECOND, SOAK, Script, cold, deploy, dies, exited, fails, passes,
    policy, routes, starts, stops,
};

#[test]
fn s05_of_two_releases_deployed_at_once_the_second_is_refused() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    let busy = Refusal::Busy {
        to: ReleaseNumber(2),
    };
    assert_eq!(script.service.accepts(&deploy(3, policy(1))), Err(busy));
    // Told all the same, it changes nothing.
    let actions = script.tell(deploy(3, policy(1)));
    assert!(actions.is_empty(), "{actions:?}");
    script.wait(SOAK * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
}

#[test]
fn s14_a_never_ready_new_set_leaves_the_old_one_untouched_and_nothing_half_registered() {
    let mut script = Script::serving(1, policy(2));
    let old = script.running(1);
    script.ready = false;
    script.tell(deploy(2, policy(2)));
    let actions = script.wait(PROGRESS + SECOND);
    assert!(routes(&actions).is_empty(), "the traffic never moved");
    assert_eq!(stops(&actions).len(), 2);
    assert_eq!(script.running(1), old);
    assert!(script.running(2).is_empty());
    assert!(script.service.outstanding().is_empty());
    let ends = script.ends();
    let end = ends.last().expect("an end");
    assert_eq!(end.result, RolloutResult::RolledBack);
    let why = Why::NotReady {
        release: ReleaseNumber(2),
        within: PROGRESS,
        unready: Unready::NotPassing {
            count: 2,
            probe: Probed::Connect,
        },
    };
    assert_eq!(end.why, Some(why));
}

#[test]
fn s15_exits_at_once_is_told_at_the_second_exit_with_the_last_lines() {
    let mut script = Script::serving(1, policy(1));
    script.exits = true;
    let began = script.now;
    script.tell(deploy(2, policy(1)));
    assert!(
        script.service.rollout().is_some(),
        "one exit may be bad luck"
    );
    let actions = script.wait(PROGRESS);
    assert_eq!(starts(&actions), 1, "no third try");
    let end = (*script.ends().last().expect("an end")).clone();
    assert_eq!(end.result, RolloutResult::RolledBack);
    let Some(Why::InstanceEnded {
        end, last_lines, ..
    }) = end.why
    else {
        panic!("{:?}", end.why)
    };
    let reason = ExitReason::Exited { code: 3 };
    assert_eq!(end, InstanceEnd::Exit { reason });
    assert_eq!(
        last_lines,
        ["reading /etc/api.toml", "cannot open the configuration"]
    );
    assert!(script.now.since(began) >= PROGRESS);
    assert_eq!(script.traffic(), Some((1, 1)));
}

#[test]
fn s15_the_second_exit_comes_within_seconds() {
    let mut script = Script::serving(1, policy(1));
    script.exits = true;
    script.tell(deploy(2, policy(1)));
    script.wait(SECOND * 2);
    assert_eq!(script.ends().len(), 2, "the first rollout and this one");
}

#[test]
fn s15_two_of_a_set_that_exit_at_once_fail_it_at_once() {
    let mut script = Script::serving(1, policy(2));
    script.exits = true;
    script.tell(deploy(2, policy(2)));
    assert_eq!(script.ends().len(), 2, "{:?}", script.notices);
}

#[test]
fn s15_a_permanent_failure_is_told_at_once() {
    for (fault, at_once) in [
        (StartFault::CommandNotFound, true),
        (StartFault::Network, false),
    ] {
        let mut script = Script::serving(1, policy(1));
        script.fails = Some(StartFailure::new(fault, "the image has no `/api`"));
        script.tell(deploy(2, policy(1)));
        assert_eq!(script.service.rollout().is_none(), at_once, "{fault:?}");
        if at_once {
            let ends = script.ends();
            let why = ends.last().and_then(|end| end.why.clone());
            let Some(Why::InstanceEnded { end, .. }) = why else {
                panic!("{why:?}")
            };
            let failure = script.fails.clone().expect("a failure");
            assert_eq!(end, InstanceEnd::NotStarted { failure });
        }
    }
}

#[test]
fn s15_out_of_memory_says_which_limit() {
    let mut script = Script::serving(1, policy(1));
    script.ready = false;
    script.tell(deploy(2, policy(1)));
    for _ in 0..2 {
        let id = script.running(2).remove(0);
        let limit = Some(1 << 20);
        script.tell(exited(&id, ExitReason::OutOfMemory { limit }));
        script.wait(SECOND * 2);
    }
    let ends = script.ends();
    let why = ends.last().and_then(|end| end.why.as_ref());
    let Some(Why::InstanceEnded { end, .. }) = why else {
        panic!("{why:?}")
    };
    let reason = ExitReason::OutOfMemory {
        limit: Some(1 << 20),
    };
    assert_eq!(*end, InstanceEnd::Exit { reason });
}

#[test]
fn s16_a_release_that_arrives_while_another_is_rolled_out_stops_nothing_that_serves() {
    let mut script = Script::serving(1, cold(1));
    script.drains = false;
    script.tell(deploy(2, cold(1)));
    script.wait(SOAK);
    assert_eq!(script.traffic(), Some((2, 1)), "switched, and watched");
    assert!(script.service.accepts(&deploy(3, cold(1))).is_err());
    let actions = script.tell(deploy(3, cold(1)));
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!(script.running(2).len(), 1);
    // Taken when 2 holds the traffic; 2 serves until 3 does.
    script.wait(SOAK);
    script.tell(deploy(3, cold(1)));
    assert_eq!(script.traffic(), Some((2, 1)));
    assert_eq!(script.running(2).len(), 1);
    script.wait(SOAK);
    assert_eq!(script.traffic(), Some((3, 1)));
    assert_eq!(script.running(2).len(), 1, "what is in flight has to end");
    script.wait(DRAIN * 2);
    assert!(script.running(1).is_empty() && script.running(2).is_empty());
}

#[test]
fn s17_a_broken_current_release_can_be_rolled_forward() {
    for break_it in [
        |id| dies(id),
        |id| fails(id),
        |id| exited(&id, ExitReason::Exited { code: 1 }),
    ] {
        let mut script = Script::serving(1, policy(2));
        script.ready = false;
        for id in script.running(1) {
            script.tell(break_it(id));
        }
        script.ready = true;
        script.roll_out(2, policy(2));
        assert_eq!(script.traffic(), Some((2, 2)));
    }
}

#[test]
fn s19_good_and_bad_releases_in_turn_keep_the_bounds() {
    let mut script = Script::serving(1, policy(2));
    let mut serving = 1;
    for (version, good) in [(2, false), (3, true), (4, false), (5, false), (6, true)] {
        script.ready = good;
        script.tell(deploy(version, policy(2)));
        for _ in 0..8 {
            let (_, backends) = script.traffic().expect("traffic");
            assert_eq!(backends, 2, "availability, at release {version}");
            let most = script.service.instances().filter(|i| i.is_alive()).count();
            assert!(most <= 6, "{most}: old, new and warm, at release {version}");
            script.wait(PROGRESS / 7);
        }
        if good {
            serving = u64::from(version);
        }
        assert_eq!(script.traffic(), Some((serving, 2)), "release {version}");
    }
}

#[test]
fn s22_the_first_release_of_a_service_has_nothing_to_go_back_to_and_waits_to_be_ready() {
    let mut script = Script::new();
    script.ready = false;
    let actions = script.tell(deploy(1, policy(1)));
    assert_eq!(starts(&actions), 1);
    assert_eq!(script.traffic(), None);
    assert_eq!(script.service.accepts(&ROLLBACK), Err(Refusal::NoPrevious));
    let instance = script.running(1).remove(0);
    script.tell(passes(instance));
    script.wait(SOAK * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(1)));
    assert_eq!(script.traffic(), Some((1, 1)));
    assert!(script.service.warm().is_none());
}

#[test]
fn s22_a_first_release_that_fails_ends_and_leaves_nothing() {
    let mut script = Script::new();
    script.exits = true;
    script.tell(deploy(1, policy(1)));
    script.wait(PROGRESS * 2);
    let ends = script.ends();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].result, RolloutResult::Failed);
    assert_eq!(script.service.current(), None);
    assert_eq!(script.service.instances().count(), 0);
    assert_eq!(
        script.service.poll_timeout(),
        None,
        "nothing is tried again"
    );
}

#[test]
fn s22_the_same_release_applied_again_is_a_no_op() {
    let mut script = Script::serving(1, policy(1));
    let actions = script.tell(deploy(1, policy(1)));
    assert!(actions.is_empty(), "{actions:?}");
    assert!(script.service.rollout().is_none());
    assert_eq!(script.service.releases().count(), 1);
}

#[test]
fn s24_one_success_is_not_soak() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    let instance = script.running(2).remove(0);
    for _ in 0..4 {
        let actions = script.wait(SOAK - SECOND);
        assert!(
            routes(&actions).is_empty(),
            "it was not ready for as long as soak"
        );
        script.tell(fails(instance.clone()));
        script.tell(passes(instance.clone()));
    }
    let actions = script.wait(SOAK);
    assert_eq!(routes(&actions), [(Some(2), 1)]);
}

#[test]
fn s24_health_that_is_lost_at_the_switch_gives_the_traffic_back() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    script.wait(SOAK);
    assert_eq!(script.traffic(), Some((2, 1)));
    let instance = script.running(2).remove(0);
    let actions = script.tell(fails(instance));
    assert_eq!(routes(&actions), [(Some(1), 1)]);
    assert_eq!(starts(&actions), 0, "the old set was kept for this");
    assert_eq!(
        script.ends().last().map(|end| end.result),
        Some(RolloutResult::RolledBack)
    );
}

#[test]
fn a_refused_switch_gives_the_traffic_back() {
    let mut script = Script::serving(1, policy(1));
    script.confirms = false;
    script.tell(deploy(2, policy(1)));
    script.wait(SOAK);
    script.confirms = true;
    let generation = script.service.route().expect("a route").generation;
    script.tell(Event::RouteRefused {
        generation,
        reason: "no such listener".to_owned(),
    });
    script.wait(SECOND);
    assert_eq!(script.traffic(), Some((1, 1)));
    let ends = script.ends();
    let detail = "no such listener".to_owned();
    let why = ends.last().and_then(|end| end.why.clone());
    assert_eq!(why, Some(Why::RouteRefused { detail }));
}

#[test]
fn a_refused_way_back_is_tried_again_with_a_new_generation_and_back_off() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    script.wait(SOAK);
    script.confirms = false;
    let instance = script.running(2).remove(0);
    script.tell(fails(instance));
    let mut last = script.service.route().expect("a route").generation;
    for wait in [1, 2, 4] {
        script.tell(Event::RouteRefused {
            generation: last,
            reason: "the disk is full".to_owned(),
        });
        let refused = script.service.waits_on().and_then(|wait| wait.refused);
        assert_eq!(refused.as_deref(), Some("the disk is full"));
        let early = script.wait(SECOND * wait - Duration::from_millis(1));
        assert!(routes(&early).is_empty(), "{wait} s are not over");
        let due = script.wait(Duration::from_millis(1));
        assert_eq!(routes(&due), [(Some(1), 1)]);
        let generation = script.service.route().expect("a route").generation;
        assert!(generation > last);
        last = generation;
    }
    script.tell(Event::Confirmed { generation: last });
    script.wait(DRAIN * 2);
    let ends = script.ends();
    assert_eq!(
        ends.last().map(|end| end.result),
        Some(RolloutResult::RolledBack)
    );
    assert!(script.service.outstanding().is_empty());
    assert_eq!(script.service.poll_timeout(), None);
}

#[test]
fn a_dead_instance_leaves_the_route_at_once_and_is_replaced_by_another() {
    let mut script = Script::serving(1, policy(2));
    let dead = script.running(1).remove(0);
    script.starts = false;
    let actions = script.tell(exited(&dead, ExitReason::Signalled { signal: 11 }));
    assert_eq!(routes(&actions), [(Some(1), 1)]);
    let all = script.wait(SECOND * 2);
    let replaced = [&actions[..], &all[..]].concat();
    let new = replaced.iter().find_map(|action| match action {
        Action::Start { instance, .. } => Some(instance.clone()),
        _ => None,
    });
    assert!(new.is_some_and(|new| new != dead));
    assert!(script.notices.iter().any(
        |notice| matches!(notice, Notice::InstanceFailed { instance, .. } if *instance == dead)
    ));
}
