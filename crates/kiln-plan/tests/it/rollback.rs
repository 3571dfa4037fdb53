use std::time::Duration;

use kiln_model::ReleaseNumber;
use kiln_model::api::RolloutResult;
use kiln_plan::{Event, Refusal};

use crate::script::{
    DRAIN, ROLLBACK, SECOND, SOAK, Script, WARM, cold, deploy, fails, policy, release, routes,
    starts, stops,
};

#[test]
fn s18_within_the_warm_window_a_rollback_is_one_switch() {
    let mut script = Script::serving(1, policy(2));
    script.roll_out(2, policy(2));
    let actions = script.step(ROLLBACK);
    assert_eq!(routes(&actions), [(Some(1), 2)], "in the very step");
    assert_eq!(actions.len(), 1, "{actions:?}");
    script.answer();
    script.wait(SOAK * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(1)));
}

#[test]
fn s18_outside_the_window_the_old_release_is_started_first_and_only_then_switched_to() {
    let mut script = Script::serving(1, policy(1));
    script.roll_out(2, policy(1));
    script.wait(WARM);
    assert!(script.running(1).is_empty(), "the window is over");
    let actions = script.tell(ROLLBACK);
    assert_eq!(starts(&actions), 1);
    assert!(routes(&actions).is_empty());
    let actions = script.wait(SOAK);
    assert_eq!(routes(&actions), [(Some(1), 1)]);
}

#[test]
fn s18_without_a_warm_window_the_old_set_is_stopped_when_it_is_idle() {
    let mut script = Script::serving(1, cold(1));
    script.roll_out(2, cold(1));
    assert!(script.running(1).is_empty());
    assert!(script.service.warm().is_none());
}

#[test]
fn s18_a_rollback_before_the_switch_moves_no_traffic() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    let actions = script.tell(ROLLBACK);
    assert!(routes(&actions).is_empty());
    assert_eq!(stops(&actions).len(), 1);
    assert_eq!(script.traffic(), Some((1, 1)));
    assert_eq!(
        script.ends().last().map(|end| end.result),
        Some(RolloutResult::RolledBack)
    );
}

#[test]
fn s18_a_rollback_after_the_switch_gives_the_traffic_back_to_the_whole_old_set_in_one_step() {
    let mut script = Script::serving(1, cold(2));
    script.tell(deploy(2, cold(2)));
    script.wait(SOAK);
    assert_eq!(script.traffic(), Some((2, 2)));
    let actions = script.step(ROLLBACK);
    assert_eq!(routes(&actions), [(Some(1), 2)]);
    script.answer();
    script.wait(DRAIN);
    assert!(script.running(2).is_empty());
    assert_eq!(script.service.current(), Some(ReleaseNumber(1)));
}

#[test]
fn s17_a_broken_current_release_can_be_rolled_back() {
    let mut script = Script::serving(1, policy(2));
    script.roll_out(2, policy(2));
    for instance in script.running(2) {
        script.tell(fails(instance));
    }
    let actions = script.step(ROLLBACK);
    assert_eq!(routes(&actions), [(Some(1), 2)]);
}

#[test]
fn s18_a_dead_instance_of_the_warm_set_is_replaced() {
    let mut script = Script::serving(1, policy(2));
    script.roll_out(2, policy(2));
    let dead = script.running(1).remove(0);
    let record = crate::script::exited(&dead, kiln_model::ExitReason::Signalled { signal: 9 });
    script.tell(record);
    script.wait(SECOND * 2);
    assert_eq!(script.running(1).len(), 2);
    let actions = script.step(ROLLBACK);
    assert_eq!(routes(&actions), [(Some(1), 2)]);
}

#[test]
fn s18_a_newer_warm_set_retires_the_older_one() {
    let mut script = Script::serving(1, policy(1));
    script.roll_out(2, policy(1));
    script.roll_out(3, policy(1));
    assert!(script.running(1).is_empty());
    assert_eq!(script.running(2).len(), 1);
    assert_eq!(
        script.service.warm().map(|warm| warm.release),
        Some(ReleaseNumber(2))
    );
}

#[test]
fn s18_the_warm_set_is_stopped_when_its_window_ends_and_not_before() {
    let mut script = Script::serving(1, policy(1));
    script.roll_out(2, policy(1));
    let until = script.service.warm().expect("a warm set").until;
    let early = script.wait(until.since(script.now) - Duration::from_millis(1));
    assert!(early.is_empty(), "{early:?}");
    let late = script.wait(Duration::from_millis(1));
    assert_eq!(stops(&late).len(), 1);
}

#[test]
fn s27_configuration_goes_back_with_the_code() {
    let mut script = Script::serving(1, policy(1));
    script.roll_out(2, policy(1));
    script.tell(ROLLBACK);
    script.wait(SOAK * 2);
    let current = script.service.current().expect("a current release");
    let record = script.service.release(current).expect("its record");
    assert_eq!(record.release, release(1));
    assert_eq!(record.release.env["VERSION"], "1");
    assert!(script.running(1).len() == 1);
}

#[test]
fn a_rollback_says_why_it_cannot_be() {
    let mut script = Script::serving(1, policy(1));
    let to = |number| Event::Rollback {
        to: Some(ReleaseNumber(number)),
    };
    let number = ReleaseNumber(1);
    let current = Refusal::AlreadyCurrent { number };
    assert_eq!(script.service.accepts(&ROLLBACK), Err(Refusal::NoPrevious));
    assert_eq!(script.service.accepts(&to(1)), Err(current));
    let number = ReleaseNumber(9);
    let unknown = Refusal::UnknownRelease { number };
    assert_eq!(script.service.accepts(&to(9)), Err(unknown));
    script.tell(Event::Remove);
    script.wait(DRAIN);
    assert!(script.service.is_gone());
    assert_eq!(script.service.accepts(&ROLLBACK), Err(Refusal::Gone));
}
