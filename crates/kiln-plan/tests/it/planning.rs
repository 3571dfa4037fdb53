use std::collections::BTreeMap;

use kiln_model::{
    ChangeKind, EnvironmentSpec, Plan, Policy, Reason, ReleaseNumber, ServiceSpec, StateId,
};
use kiln_plan::{Service, plan};

use crate::script::{
    PROGRESS, SECOND, SOAK, Script, WARM, deploy, key, origin, policy, project, release,
};

fn wanted(version: u8, policy: Policy) -> EnvironmentSpec {
    let service = ServiceSpec {
        release: release(version),
        policy,
        origin: origin(version),
    };
    EnvironmentSpec {
        project: project(),
        environment: key().environment,
        services: BTreeMap::from([(key().service, service)]),
    }
}

fn nothing() -> EnvironmentSpec {
    EnvironmentSpec {
        services: BTreeMap::new(),
        ..wanted(1, policy(1))
    }
}

fn plan_from(service: &Service, spec: &EnvironmentSpec) -> Plan {
    let services = BTreeMap::from([(key(), service.clone())]);
    plan(&services, StateId(7), spec)
}

fn fields(plan: &Plan) -> Vec<String> {
    let reasons = plan.changes.iter().flat_map(|change| &change.reasons);
    reasons
        .map(|reason| match reason {
            Reason::New => "new".to_owned(),
            Reason::NotDefined => "not defined".to_owned(),
            Reason::Retry => "retry".to_owned(),
            Reason::Release { change } => format!("release {}", change.field),
            Reason::Policy { change } => format!("policy {}", change.field),
        })
        .collect()
}

#[test]
fn s41_a_plan_names_the_state_that_it_was_made_from() {
    let made = plan(&BTreeMap::new(), StateId(41), &wanted(1, policy(1)));
    assert_eq!(made.parent, StateId(41));
    assert_eq!(made.spec, wanted(1, policy(1)));
}

#[test]
fn s41_planning_on_its_own_result_changes_nothing() {
    let mut script = Script::new();
    for (version, replicas) in [(1, 1), (2, 1), (2, 3), (1, 2)] {
        let spec = wanted(version, policy(replicas));
        let before = plan_from(&script.service, &spec);
        assert_eq!(before.changes.len(), 1, "{before:?}");
        script.tell(deploy(version, policy(replicas)));
        let during = plan_from(&script.service, &spec);
        assert!(
            during.changes.is_empty(),
            "while it is on its way: {during:?}"
        );
        script.wait(SOAK * 2);
        let after = plan_from(&script.service, &spec);
        assert!(after.changes.is_empty(), "{after:?}");
    }
}

#[test]
fn s41_every_change_has_its_reasons() {
    let script = Script::serving(1, policy(1));
    let cases = [
        (wanted(1, policy(1)), None, vec![]),
        (
            wanted(1, policy(3)),
            Some(ChangeKind::Policy),
            vec!["policy replicas"],
        ),
        (
            wanted(2, policy(3)),
            Some(ChangeKind::Replace {
                from: ReleaseNumber(1),
                to: ReleaseNumber(2),
            }),
            vec!["release env.VERSION", "release image", "policy replicas"],
        ),
        (
            nothing(),
            Some(ChangeKind::Remove {
                from: ReleaseNumber(1),
            }),
            vec!["not defined"],
        ),
    ];
    for (spec, kind, reasons) in cases {
        let made = plan_from(&script.service, &spec);
        let kinds: Vec<_> = made.changes.iter().map(|change| &change.kind).collect();
        assert_eq!(kinds, kind.iter().collect::<Vec<_>>());
        assert_eq!(fields(&made), reasons);
    }
    let first = plan(&BTreeMap::new(), StateId(1), &wanted(1, policy(2)));
    assert_eq!(fields(&first), ["new"]);
    let to = ReleaseNumber(1);
    assert_eq!(first.changes[0].kind, ChangeKind::Create { to });
}

#[test]
fn s41_a_release_that_failed_is_tried_again_and_said_so() {
    let mut script = Script::serving(1, policy(1));
    script.exits = true;
    script.tell(deploy(2, policy(1)));
    script.wait(PROGRESS);
    let made = plan_from(&script.service, &wanted(2, policy(1)));
    assert!(fields(&made).contains(&"retry".to_owned()), "{made:?}");
}

#[test]
fn s41_a_release_that_is_being_turned_back_is_not_taken_for_what_was_asked_for() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    script.wait(SOAK);
    script.confirms = false;
    script.tell(crate::script::ROLLBACK);
    assert!(script.service.rollout().is_some());
    let made = plan_from(&script.service, &wanted(2, policy(1)));
    assert_eq!(made.changes.len(), 1, "{made:?}");
}

#[test]
fn s41_the_most_instances_that_a_change_runs_are_told_and_kept() {
    let mut script = Script::new();
    // First, with nothing warm, with a warm set, and back to the warm set.
    for (version, replicas, most) in [(1, 2, 2), (2, 2, 4), (3, 2, 6), (2, 2, 4)] {
        let made = plan_from(&script.service, &wanted(version, policy(replicas)));
        let peak = made.changes[0].peak_instances;
        assert_eq!(peak, most, "release {version}");
        script.tell(deploy(version, policy(replicas)));
        for _ in 0..10 {
            let alive = script.service.instances().filter(|i| i.is_alive()).count();
            assert!(alive <= peak as usize, "{alive} for {peak}");
            script.wait(SECOND);
        }
    }
    script.wait(WARM);
    assert_eq!(script.service.instances().count(), 2);
}
