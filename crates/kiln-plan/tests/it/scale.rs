use kiln_model::{Policy, ReleaseNumber};
use kiln_plan::Event;

use crate::script::{
    DRAIN, PROGRESS, SECOND, SOAK, Script, cold, deploy, dies, fails, passes, policy, routes,
    starts, stops,
};

fn set(policy: Policy) -> Event {
    Event::SetPolicy { policy }
}

#[test]
fn s20_one_replica_is_replaced_by_starting_the_new_one_first() {
    let mut script = Script::serving(1, cold(1));
    script.tell(deploy(2, cold(1)));
    assert_eq!((script.running(1).len(), script.running(2).len()), (1, 1));
    script.wait(SOAK * 2);
    assert_eq!((script.running(1).len(), script.running(2).len()), (0, 1));
}

#[test]
fn s20_no_replicas_is_nobody_and_still_ends() {
    let mut script = Script::serving(1, policy(0));
    assert_eq!(script.service.instances().count(), 0);
    script.roll_out(2, policy(0));
    assert_eq!(script.service.instances().count(), 0);
    script.tell(set(policy(1)));
    script.wait(SECOND);
    assert_eq!(script.traffic(), Some((2, 1)));
}

#[test]
fn s20_scaled_to_nothing_the_set_is_drained_and_stopped() {
    let mut script = Script::serving(1, policy(2));
    script.tell(set(policy(0)));
    script.wait(DRAIN);
    assert_eq!(script.service.instances().count(), 0);
    assert_eq!(script.traffic(), Some((1, 0)));
}

#[test]
fn s23_scaling_up_during_a_rollout_makes_both_sets_larger_and_the_switch_waits_for_it() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    script.ready = false;
    script.tell(set(policy(2)));
    assert_eq!((script.running(1).len(), script.running(2).len()), (2, 2));
    let actions = script.wait(SOAK * 2);
    assert!(
        routes(&actions).is_empty(),
        "the second of release 2 is not ready"
    );
    for instance in script.running(2) {
        script.tell(passes(instance));
    }
    let actions = script.wait(SOAK);
    assert_eq!(routes(&actions), [(Some(2), 2)]);
}

#[test]
fn s23_scaling_down_during_a_rollout_stops_what_is_too_much_after_its_drain() {
    let mut script = Script::serving(1, policy(3));
    script.drains = false;
    script.tell(deploy(2, policy(3)));
    let actions = script.tell(set(policy(1)));
    assert_eq!(script.traffic(), Some((1, 1)));
    assert!(
        stops(&actions).iter().all(|id| id.as_str().contains("-2-")),
        "what had traffic is drained first: {actions:?}"
    );
    script.drains = true;
    script.wait(DRAIN * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
    assert_eq!(script.traffic(), Some((2, 1)));
    assert_eq!((script.running(1).len(), script.running(2).len()), (1, 1));
}

#[test]
fn s23_release_and_replicas_changed_together() {
    for (from, to) in [(1, 3), (3, 1)] {
        let mut script = Script::serving(1, cold(from));
        script.tell(deploy(2, cold(to)));
        script.wait(SOAK * 2 + DRAIN);
        assert_eq!(script.traffic(), Some((2, to as usize)));
        assert_eq!(script.service.instances().count(), to as usize);
    }
}

#[test]
fn s25_the_strategy_changed_with_a_rollout_running_holds_for_what_is_still_to_come() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    let actions = script.tell(set(cold(1)));
    assert!(actions.is_empty(), "{actions:?}");
    script.wait(SOAK * 2);
    assert_eq!(script.service.current(), Some(ReleaseNumber(2)));
    assert!(
        script.running(1).is_empty(),
        "nothing is kept warm any more"
    );
}

#[test]
fn a_live_failure_is_replaced_before_it_is_stopped_where_it_still_answers() {
    let mut script = Script::serving(1, policy(1));
    script.ready = false;
    let doomed = script.running(1).remove(0);
    let actions = script.tell(dies(doomed.clone()));
    assert_eq!(starts(&actions), 1);
    assert!(stops(&actions).is_empty());
    assert_eq!(script.traffic(), Some((1, 1)));
    let new = script.running(1).into_iter().find(|id| *id != doomed);
    let instance = new.expect("a replacement");
    let actions = script.tell(passes(instance));
    assert_eq!(routes(&actions), [(Some(1), 1)]);
    assert_eq!(stops(&actions), [doomed]);
}

#[test]
fn s10_unready_instances_leave_the_route_only_while_others_are_ready() {
    let mut script = Script::serving(1, policy(2));
    let all = script.running(1);
    let unready = |id: &kiln_model::InstanceId| fails(id.clone());
    let actions = script.tell(unready(&all[0]));
    assert_eq!(routes(&actions), [(Some(1), 1)]);
    let actions = script.tell(unready(&all[1]));
    assert!(routes(&actions).is_empty(), "the last one goes on");
    let instance = all[0].clone();
    let actions = script.tell(passes(instance));
    assert_eq!(routes(&actions), [(Some(1), 1)], "recovery is noticed");
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut script = Script::serving(1, policy(2));
    script.roll_out(2, policy(2));
    let actions = script.tell(Event::Remove);
    assert_eq!(routes(&actions), [(None, 0)]);
    script.wait(DRAIN);
    assert!(script.service.is_gone());
    assert_eq!(script.service.instances().count(), 0);
    assert!(script.service.outstanding().is_empty());
    assert_eq!(script.service.poll_timeout(), None);
}

#[test]
fn a_release_that_keeps_dying_is_tried_with_growing_waits() {
    let mut script = Script::serving(1, policy(1));
    script.exits = true;
    let dead = script.running(1).remove(0);
    script.tell(crate::script::exited(
        &dead,
        kiln_model::ExitReason::Exited { code: 1 },
    ));
    let in_the_first = starts(&script.wait(PROGRESS * 2));
    assert!((3..=8).contains(&in_the_first), "{in_the_first}");
    let later = starts(&script.wait(SECOND * 600));
    assert!((9..=10).contains(&later), "one a minute: {later}");
}
