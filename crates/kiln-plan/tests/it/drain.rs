use std::time::Duration;

use kiln_plan::Event;

use crate::script::{DRAIN, SOAK, Script, cold, deploy, fails, passes, stops};

/// Old set {1}, which left the routes; requests of it are in flight.
fn draining() -> Script {
    let mut script = Script::serving(1, cold(1));
    script.drains = false;
    script.tell(deploy(2, cold(1)));
    script.wait(SOAK * 2);
    assert_eq!(script.traffic(), Some((2, 1)));
    script
}

#[test]
fn s01_draining_with_nothing_in_flight_returns_at_once() {
    let mut script = Script::serving(1, cold(1));
    let old = script.running(1);
    script.tell(deploy(2, cold(1)));
    // Soak, switch, watch: the old set is gone at the end of it and no drain deadline was waited out.
    let actions = script.wait(SOAK * 2);
    assert_eq!(stops(&actions), old);
    assert!(script.running(1).is_empty());
}

#[test]
fn s02_past_the_drain_deadline_the_old_set_is_stopped_though_requests_are_in_flight() {
    let mut script = draining();
    let old = script.running(1);
    assert_eq!(old.len(), 1, "it serves what is in flight");
    let actions = script.wait(DRAIN - SOAK - Duration::from_millis(1));
    assert!(stops(&actions).is_empty());
    assert_eq!(script.running(1), old);
    // The proxy cuts at the deadline and has a moment to say so.
    let actions = script.wait(SOAK + Duration::from_secs(3));
    assert_eq!(stops(&actions), old);
}

#[test]
fn s03_a_stop_comes_strictly_after_the_confirmation_and_the_end_of_what_is_in_flight() {
    let mut script = Script::serving(1, cold(1));
    let old = script.running(1);
    script.confirms = false;
    script.drains = false;
    script.tell(deploy(2, cold(1)));
    let actions = script.wait(SOAK * 20);
    assert_eq!(script.traffic(), Some((2, 1)));
    assert!(stops(&actions).is_empty(), "the route is not confirmed");
    // A word that all is idle, before every proxy left the instance, is about a route of the past.
    let instance = old[0].clone();
    script.tell(Event::Drained { instance, cut: 0 });
    let generation = script.service.route().expect("a route").generation;
    script.tell(Event::Confirmed { generation });
    let actions = script.wait(SOAK * 2);
    assert!(stops(&actions).is_empty(), "requests are in flight");
    let actions = script.tell(Event::Drained {
        instance: old[0].clone(),
        cut: 0,
    });
    assert_eq!(stops(&actions), old);
}

#[test]
fn s03_the_confirmation_of_an_older_generation_counts_for_nothing() {
    let mut script = Script::serving(1, cold(1));
    let older = script.service.route().expect("a route").generation;
    script.confirms = false;
    script.tell(deploy(2, cold(1)));
    script.wait(SOAK);
    script.tell(Event::Confirmed { generation: older });
    let actions = script.wait(SOAK * 4);
    assert!(stops(&actions).is_empty());
    assert_eq!(
        script.service.waits_on().map(|wait| wait.phase),
        Some(kiln_model::RolloutPhase::Switch)
    );
}

#[test]
fn s06_a_check_that_passes_during_drain_does_not_bring_a_draining_target_back() {
    let mut script = draining();
    let old = script.running(1).remove(0);
    let mut actions = script.tell(fails(old.clone()));
    actions.extend(script.tell(passes(old.clone())));
    actions.extend(script.wait(SOAK));
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!(script.traffic(), Some((2, 1)));
}
