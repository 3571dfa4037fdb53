use std::collections::BTreeSet;

use kiln_model::{ActionId, ExitReason, ReleaseNumber, WaitsOn};
use kiln_plan::{Action, Event};

use crate::script::{
    DRAIN, SECOND, SOAK, Script, cold, deploy, exited, passes, policy, routes, starts, stops,
};

fn id(action: &Action) -> ActionId {
    match action {
        Action::Start { id, .. }
        | Action::Stop { id, .. }
        | Action::Remove { id, .. }
        | Action::Route { id, .. } => *id,
    }
}

#[test]
fn s38_a_restart_issues_what_has_no_outcome_and_nothing_else() {
    let mut script = Script::serving(1, policy(2));
    assert!(script.service.outstanding().is_empty());
    script.starts = false;
    let asked = script.tell(deploy(2, policy(2)));
    assert_eq!(starts(&asked), 2);
    script.restart();
    assert_eq!(script.service.outstanding(), asked, "with the same ids");
    // Carried out again: the engine knows the ids and says what became of them.
    script.starts = true;
    script.answer();
    assert!(script.service.outstanding().is_empty());
    script.wait(SOAK * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
}

#[test]
fn s38_killed_at_any_step_the_rollout_ends_and_nothing_is_asked_twice() {
    // Killed after the n-th step of the rollout; each n until the rollout is longer than that.
    for kill_after in 0..40 {
        let mut script = Script::serving(1, cold(2));
        script.step(deploy(2, cold(2)));
        let mut steps = 0;
        while steps < kill_after {
            script.wait_one_step();
            steps += 1;
        }
        script.restart();
        script.answer();
        script.wait(SOAK * 2 + DRAIN);
        assert_eq!(script.traffic(), Some((2, 2)), "killed after {kill_after}");
        assert_eq!(script.service.instances().count(), 2);
        assert!(script.service.outstanding().is_empty());
        let ids: BTreeSet<_> = script.actions.iter().map(id).collect();
        assert_eq!(ids.len(), script.actions.len(), "killed after {kill_after}");
        assert_eq!(starts(&script.actions), 4, "killed after {kill_after}");
        assert_eq!(stops(&script.actions).len(), 2, "killed after {kill_after}");
    }
}

#[test]
fn s38_an_outcome_that_is_told_twice_changes_nothing() {
    let mut script = Script::serving(1, policy(1));
    let instance = script.running(1).remove(0);
    let generation = script.service.route().expect("a route").generation;
    let started = Event::Started {
        instance: instance.clone(),
        pid: Some(100),
        endpoint: Some(([10, 0, 0, 2], 3000).into()),
        at: script.now,
    };
    let drained = Event::Drained {
        instance: instance.clone(),
        cut: 0,
    };
    let before = script.service.clone();
    for event in [
        started,
        passes(instance),
        Event::Confirmed { generation },
        drained,
        Event::Timer,
    ] {
        let actions = script.tell(event.clone());
        assert!(actions.is_empty(), "{event:?}: {actions:?}");
        assert_eq!(script.service, before, "{event:?}");
    }
}

#[test]
fn s40_after_a_reboot_every_set_comes_back_at_once_without_choosing_anew() {
    let mut script = Script::serving(1, policy(2));
    script.roll_out(2, policy(2));
    script.restart();
    let lost: Vec<_> = script.service.instances().map(|i| i.id.clone()).collect();
    let mut actions = Vec::new();
    for id in &lost {
        actions.extend(script.tell(exited(id, ExitReason::Lost)));
    }
    assert_eq!(starts(&actions), 4, "current and warm, without back-off");
    assert!(script.service.rollout().is_none(), "no new choice");
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
    assert_eq!(script.traffic(), Some((2, 2)));
    assert_eq!(script.running(1).len(), 2);
}

#[test]
fn s40_a_reboot_in_a_rollout_ends_it() {
    for before_switch in [true, false] {
        let mut script = Script::serving(1, policy(1));
        script.tell(deploy(2, policy(1)));
        if !before_switch {
            script.wait(SOAK);
        }
        script.restart();
        let lost: Vec<_> = script.service.instances().map(|i| i.id.clone()).collect();
        for id in &lost {
            script.tell(exited(id, ExitReason::Lost));
        }
        script.wait(SOAK * 4 + DRAIN);
        assert!(script.service.rollout().is_none(), "{:?}", script.notices);
        assert_eq!(script.traffic(), Some((2, 1)), "{before_switch}");
    }
}

#[test]
fn s39_a_clock_that_jumps_ahead_ends_what_was_waited_for_and_keeps_what_serves() {
    let mut script = Script::serving(1, policy(1));
    script.roll_out(2, policy(1));
    script.now = script.now.plus(SECOND * 86_400);
    let actions = script.tell(Event::Timer);
    assert!(routes(&actions).is_empty());
    assert_eq!(script.running(2).len(), 1);
    assert!(script.running(1).is_empty(), "the warm window is over");
}

#[test]
fn s39_an_unreachable_proxy_is_waited_for_and_said() {
    let mut script = Script::serving(1, policy(1));
    script.confirms = false;
    script.tell(deploy(2, policy(1)));
    let actions = script.wait(SECOND * 3_600);
    assert!(stops(&actions).is_empty(), "the old set goes on serving");
    let release = ReleaseNumber(2);
    assert_eq!(
        script.service.waits_on().map(|wait| wait.on),
        Some(WaitsOn::Confirmation { release })
    );
    let generation = script.service.route().expect("a route").generation;
    script.tell(Event::Confirmed { generation });
    script.wait(SOAK);
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
}
