use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{HttpProbe, Policy, ReleaseNumber, RolloutPhase, Why};
use kiln_plan::{Event, Notice, ProbeKind};

use crate::script::{
    DRAIN, PROGRESS, ROLLBACK, SECOND, SOAK, Script, deploy, dies, exited, passes, policy, routes,
    starts,
};

fn probe(path: &str) -> HttpProbe {
    HttpProbe {
        path: path.to_owned(),
        period: SECOND,
        timeout: SECOND,
        successes: 1,
        failures: 3,
    }
}

fn ready_at(path: &str) -> Policy {
    Policy {
        ready: Some(probe(path)),
        ..policy(2)
    }
}

fn probed(script: &mut Script, instance: &kiln_model::InstanceId, kind: ProbeKind) {
    script.tell(Event::Probed {
        instance: instance.clone(),
        probe: kind,
        passes: true,
    });
}

/// The paths that are asked of the instances of a release now, by kind.
fn asked(script: &Script, kind: ProbeKind) -> Vec<String> {
    let probes = script.service.probes().into_iter();
    let mut paths: Vec<_> = probes
        .filter(|probe| probe.kind == kind)
        .filter_map(|probe| Some(probe.http?.path))
        .collect();
    paths.dedup();
    paths
}

fn changes(script: &Script) -> Vec<&Notice> {
    let wanted =
        |notice: &&Notice| matches!(notice, Notice::PolicyChanged | Notice::PolicyKept { .. });
    script.notices.iter().filter(wanted).collect()
}

#[test]
fn what_is_turned_back_is_the_release_and_its_policy_together() {
    let before = ready_at("/ready");
    let mut script = Script::serving(1, before.clone());
    script.ready = false;
    let wrong = Policy {
        replicas: 3,
        listen: Some(([127, 0, 0, 1], 81).into()),
        ..ready_at("/nowhere")
    };
    script.tell(deploy(2, wrong));
    assert_eq!(script.running(1).len(), 2, "the old set keeps its size");
    assert_eq!(script.running(2).len(), 3);
    let asked_first: Vec<_> = script.service.probes().into_iter().collect();
    for probe in asked_first {
        let of_new = script.running(2).contains(&probe.instance);
        let path = probe.http.expect("a path").path;
        assert_eq!(path, if of_new { "/nowhere" } else { "/ready" });
    }
    script.wait(PROGRESS + DRAIN);
    let end = script.ends().last().map(|end| end.result);
    assert_eq!(end, Some(RolloutResult::RolledBack));
    assert_eq!(script.service.policy(), Some(&before));
    assert_eq!(asked(&script, ProbeKind::Ready), ["/ready"]);
    assert_eq!(script.traffic(), Some((1, 2)));
}

#[test]
fn probes_go_back_with_the_release_that_is_rolled_back_to() {
    let mut script = Script::serving(1, ready_at("/v1"));
    script.roll_out(2, ready_at("/v2"));
    let paths: Vec<_> = script
        .service
        .probes()
        .into_iter()
        .map(|probe| (script.running(1).contains(&probe.instance), probe.http))
        .collect();
    for (warm, http) in paths {
        let path = http.expect("a path").path;
        assert_eq!(path, if warm { "/v1" } else { "/v2" });
    }
    let actions = script.step(ROLLBACK);
    assert_eq!(routes(&actions), [(Some(1), 2)], "one switch");
    script.answer();
    script.wait(SOAK);
    let path = script.service.policy().and_then(|p| p.ready.clone());
    assert_eq!(path.map(|probe| probe.path), Some("/v1".to_owned()));
}

#[test]
fn a_changed_probe_has_to_pass_before_it_counts() {
    let mut script = Script::serving(1, ready_at("/ready"));
    let policy = ready_at("/healthz");
    let set = Event::SetPolicy {
        policy: policy.clone(),
    };
    script.tell(set);
    assert_eq!(asked(&script, ProbeKind::Ready), ["/ready"]);
    assert_eq!(asked(&script, ProbeKind::NextReady), ["/healthz"]);
    let wait = script.service.waits_on().expect("a wait");
    assert_eq!(wait.phase, RolloutPhase::Prove);
    let all = script.running(1);
    probed(&mut script, &all[0], ProbeKind::NextReady);
    assert!(changes(&script).is_empty(), "one of two is not all");
    probed(&mut script, &all[1], ProbeKind::NextReady);
    assert_eq!(changes(&script), [&Notice::PolicyChanged]);
    assert_eq!(script.service.policy(), Some(&policy));
    assert_eq!(asked(&script, ProbeKind::Ready), ["/healthz"]);
    assert!(asked(&script, ProbeKind::NextReady).is_empty());
}

#[test]
fn a_changed_probe_that_does_not_pass_changes_nothing() {
    let before = ready_at("/ready");
    let mut script = Script::serving(1, before.clone());
    let policy = Policy {
        live: Some(probe("/wrong")),
        ..before.clone()
    };
    script.tell(Event::SetPolicy { policy });
    for id in script.running(1) {
        probed(&mut script, &id, ProbeKind::NextReady);
    }
    let actions = script.wait(PROGRESS);
    assert!(actions.is_empty(), "{actions:?}");
    let kept = changes(&script);
    let [
        Notice::PolicyKept {
            why: Why::ProbesNotPassing { .. },
        },
    ] = kept[..]
    else {
        panic!("{kept:?}")
    };
    assert_eq!(script.service.policy(), Some(&before));
    assert_eq!(script.traffic(), Some((1, 2)));
}

/// Scenario 17: the current release is itself broken; its probe can be mended.
#[test]
fn s17_a_wrong_probe_of_what_serves_can_be_mended_by_the_policy_alone() {
    let mut script = Script::serving(1, ready_at("/ready"));
    for id in script.running(1) {
        script.tell(crate::script::fails(id));
    }
    script.tell(Event::SetPolicy {
        policy: ready_at("/healthz"),
    });
    for id in script.running(1) {
        probed(&mut script, &id, ProbeKind::NextReady);
    }
    assert_eq!(changes(&script), [&Notice::PolicyChanged]);
    assert!(script.service.running().all(|instance| instance.is_ready()));
}

#[test]
fn a_live_probe_that_never_passed_replaces_nothing_and_is_never_switched_to() {
    let mut script = Script::serving(1, policy(1));
    script.ready = false;
    let wrong = Policy {
        live: Some(probe("/wrong")),
        ..policy(1)
    };
    script.tell(deploy(2, wrong));
    let id = script.running(2).remove(0);
    script.tell(passes(id.clone()));
    let actions = script.tell(dies(id));
    assert_eq!(starts(&actions), 0);
    let actions = script.wait(PROGRESS + DRAIN);
    assert!(routes(&actions).is_empty(), "{actions:?}");
    let ends = script.ends();
    let why = ends.last().and_then(|end| end.why.clone());
    let Some(Why::NotReady { unready, .. }) = why else {
        panic!("{why:?}")
    };
    let kiln_model::Unready::NotPassing { probe, .. } = unready else {
        panic!("{unready:?}")
    };
    assert!(matches!(probe, kiln_model::Probed::Http { path, .. } if path == "/wrong"));
}

#[test]
fn listen_alone_is_done_when_every_proxy_listens_there() {
    let at = |port| Some(([127, 0, 0, 1], port).into());
    let on = |port| Policy {
        listen: at(port),
        ..policy(1)
    };
    let mut script = Script::serving(1, on(80));
    script.confirms = false;
    let actions = script.tell(Event::SetPolicy { policy: on(81) });
    assert_eq!(routes(&actions), [(Some(1), 1)]);
    assert_eq!(script.service.route().expect("a route").listen, at(81));
    assert!(changes(&script).is_empty(), "no proxy has confirmed it");
    let generation = script.service.route().expect("a route").generation;
    script.tell(Event::Confirmed { generation });
    assert_eq!(changes(&script), [&Notice::PolicyChanged]);
    // Said again, nothing changes.
    let actions = script.tell(Event::SetPolicy { policy: on(81) });
    assert!(routes(&actions).is_empty());
}

#[test]
fn another_drain_deadline_counts_for_what_drains_already() {
    let mut script = Script::serving(1, policy(1));
    script.drains = false;
    script.roll_out(2, policy(1));
    script.tell(ROLLBACK);
    let policy = Policy {
        drain_deadline: SECOND,
        ..policy(1)
    };
    let actions = script.tell(Event::SetPolicy { policy });
    assert_eq!(routes(&actions).len(), 1, "the proxies hear of it");
    let route = script.service.route().expect("a route");
    assert_eq!(route.drain_deadline, SECOND);
}

#[test]
fn a_service_whose_rollout_failed_with_nothing_to_serve_listens_nowhere() {
    let listen = Some(([127, 0, 0, 1], 80).into());
    let mut script = Script::serving(
        1,
        Policy {
            listen,
            ..policy(1)
        },
    );
    script.tell(Event::Remove);
    assert_eq!(script.service.route().expect("a route").listen, None);
    script.wait(DRAIN);
    assert!(script.service.is_gone());
    script.exits = true;
    script.tell(deploy(
        2,
        Policy {
            listen,
            ..policy(1)
        },
    ));
    assert_eq!(
        script.service.listens().len(),
        1,
        "clients wait for the first"
    );
    script.wait(PROGRESS);
    assert!(script.service.listens().is_empty());
    assert_eq!(script.service.route().expect("a route").listen, None);
}

#[test]
fn a_rollback_that_a_person_asked_for_is_no_failure_of_the_release() {
    let mut script = Script::serving(1, policy(1));
    script.tell(deploy(2, policy(1)));
    script.tell(ROLLBACK);
    let ends = script.ends();
    assert_eq!(
        ends.last().and_then(|end| end.why.clone()),
        Some(Why::Asked)
    );
}

/// Replicas that fail at once have one cause: the wait grows once.
#[test]
fn a_whole_set_that_dies_at_once_is_one_failure() {
    let mut script = Script::serving(1, policy(3));
    for id in script.running(1) {
        script.exits = true;
        script.step(exited(&id, kiln_model::ExitReason::Exited { code: 1 }));
    }
    script.answer();
    script.exits = false;
    script.wait(Duration::from_millis(2_100));
    assert_eq!(script.running(1).len(), 3);
    assert_eq!(script.service.current(), Some(ReleaseNumber(1)));
}
