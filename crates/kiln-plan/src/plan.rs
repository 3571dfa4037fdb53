//! A plan: the difference between what is and what a definition asks for, with reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{
    Change, ChangeKind, EnvironmentSpec, FieldChange, Plan, Policy, Reason, ReleaseNumber,
    ServiceKey, ServiceSpec, StateId, Why,
};
use serde::Serialize;
use serde_json::Value;

use crate::service::Service;
use crate::traffic::DRAIN_MARGIN;

/// What would change if `spec` were applied. Planning again on the result gives no change.
pub fn plan(
    services: &BTreeMap<ServiceKey, Service>,
    parent: StateId,
    spec: &EnvironmentSpec,
) -> Plan {
    let here = |key: &ServiceKey| key.environment == spec.environment;
    let running: BTreeMap<_, _> = services
        .iter()
        .filter(|(key, service)| {
            here(key) && service.project == spec.project && !service.gone && !service.removing
        })
        .map(|(key, service)| (&key.service, service))
        .collect();
    let names: BTreeSet<_> = running
        .keys()
        .copied()
        .chain(spec.services.keys())
        .collect();
    let changes = names
        .into_iter()
        .filter_map(|name| {
            let known = services
                .iter()
                .find(|(key, _)| here(key) && key.service == *name)
                .map(|(_, service)| service);
            let (kind, reasons, peak_instances) = match (running.get(name), spec.services.get(name))
            {
                (None, None) => return None,
                (None, Some(wanted)) => {
                    let kind = ChangeKind::Create {
                        to: number_for(known, wanted),
                    };
                    (kind, vec![Reason::New], wanted.policy.replicas)
                }
                (Some(service), None) => {
                    let from = service.current.unwrap_or(ReleaseNumber(0));
                    let kind = ChangeKind::Remove { from };
                    (kind, vec![Reason::NotDefined], instances(service))
                }
                (Some(service), Some(wanted)) => change(service, wanted)?,
            };
            Some(Change {
                service: name.clone(),
                kind,
                reasons,
                peak_instances,
            })
        })
        .collect();
    Plan {
        parent,
        spec: spec.clone(),
        changes,
    }
}

fn change(service: &Service, wanted: &ServiceSpec) -> Option<(ChangeKind, Vec<Reason>, u32)> {
    let mut reasons = Vec::new();
    if let Some(policy) = &service.policy {
        reasons.extend(
            differences(policy, &wanted.policy)
                .into_iter()
                .map(|change| Reason::Policy { change }),
        );
    }
    let to = number_for(Some(service), wanted);
    let target = service
        .rollout
        .as_ref()
        .filter(|rollout| !rollout.is_going_back())
        .map(|rollout| rollout.to)
        .or(service.current);
    if target == Some(to) {
        if reasons.is_empty() {
            return None;
        }
        let peak = instances(service).max(wanted.policy.replicas);
        return Some((ChangeKind::Policy, reasons, peak));
    }
    let failed = service.last_rollout.as_ref().is_some_and(|end| {
        end.to == to
            && matches!(
                end.result,
                RolloutResult::RolledBack | RolloutResult::Failed
            )
            && end.why != Some(Why::Asked)
    });
    if failed {
        reasons.insert(0, Reason::Retry);
    }
    let kind = match service.current {
        None => ChangeKind::Create { to },
        Some(from) => ChangeKind::Replace { from, to },
    };
    if let Some(record) = service.current.and_then(|from| service.releases.get(&from)) {
        let release = differences(&record.release, &wanted.release);
        let release = release.into_iter().map(|change| Reason::Release { change });
        reasons.splice(0..0, release);
    } else if reasons.is_empty() {
        reasons.push(Reason::New);
    }
    let is_warm = service.warm.as_ref().is_some_and(|warm| warm.release == to);
    let new = if is_warm { 0 } else { wanted.policy.replicas };
    Some((kind, reasons, instances(service) + new))
}

fn instances(service: &Service) -> u32 {
    let alive = service
        .instances
        .values()
        .filter(|instance| instance.is_alive())
        .count();
    u32::try_from(alive).unwrap_or(u32::MAX)
}

/// The number that the release has, or will be given.
fn number_for(service: Option<&Service>, wanted: &ServiceSpec) -> ReleaseNumber {
    let Some(service) = service else {
        return ReleaseNumber(1);
    };
    let id = wanted.release.id().ok();
    service
        .releases
        .iter()
        .find(|(_, record)| Some(record.id) == id)
        .map_or_else(|| service.next_release(), |(number, _)| *number)
}

/// The fields in which two values differ, by path, ordered.
fn differences<T: Serialize>(from: &T, to: &T) -> Vec<FieldChange> {
    let mut found = Vec::new();
    if let (Ok(from), Ok(to)) = (serde_json::to_value(from), serde_json::to_value(to)) {
        compare("", Some(&from), Some(&to), &mut found);
    }
    found
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<FieldChange>) {
    if from == to {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (from, to) {
        let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for name in names {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            compare(&path, a.get(name), b.get(name), found);
        }
        return;
    }
    found.push(FieldChange {
        field: path.to_owned(),
        from: from.map(Value::to_string),
        to: to.map(Value::to_string),
    });
}

/// How long a rollout under `policy` takes at most once faults have ceased: until the new set is ready or given up, the
/// switch watched, the way back, and the drain and end of what is not needed.
pub fn bound(policy: &Policy) -> Duration {
    policy.progress_deadline
        + policy.soak * 2
        + policy.drain_deadline
        + DRAIN_MARGIN
        + policy.stop_grace
        + Duration::from_secs(60)
}
