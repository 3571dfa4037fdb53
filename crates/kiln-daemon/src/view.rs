//! What the API shows of the state.

use std::net::SocketAddr;

use kiln_control::Controller;
use kiln_model::api::{
    HistoryEvent, HistoryRelease, InstanceState, InstanceStatus, LastRollout, ReleaseStatus,
    RolloutStatus, ServiceStatus, Status, WarmStatus,
};
use kiln_model::{EnvName, Fact, InstanceId, ServiceKey, Snapshot};
use kiln_plan::{Instance, Phase, RolloutEnd, Routed, Service, StepRecord, Warm};

use crate::journal::{Entry, Recorded};
use crate::text;

/// Entries that one answer shows at most.
pub(crate) const HISTORY_ENTRIES: usize = 200;

pub(crate) fn status(core: &Controller, environment: Option<&EnvName>) -> Status {
    let mut problems: Vec<_> = core.problems().map(|(_, text)| text.to_owned()).collect();
    problems.dedup();
    Status {
        services: core
            .services()
            .filter(|(key, service)| {
                !service.is_gone() && environment.is_none_or(|name| *name == key.environment)
            })
            .map(|(key, service)| service_status(core, key, service))
            .collect(),
        problems,
    }
}

fn service_status(core: &Controller, key: &ServiceKey, service: &Service) -> ServiceStatus {
    ServiceStatus {
        name: key.service.clone(),
        environment: key.environment.clone(),
        project: service.project().clone(),
        url: url(service),
        release: service.current().and_then(|number| {
            let record = service.release(number)?;
            Some(ReleaseStatus {
                number,
                image: record.release.image,
                commit: record.origin.commit.clone(),
                tag: record.origin.tag.clone(),
            })
        }),
        instances: service
            .instances()
            .map(|instance| {
                let is_ejected = core.is_ejected(&instance.id);
                instance_status(service, instance, is_ejected)
            })
            .collect(),
        rollout: service.rollout().map(|rollout| {
            let wait = service.waits_on();
            RolloutStatus {
                from: rollout.from,
                to: rollout.to,
                phase: rollout.phase().name().to_owned(),
                waits_on: wait.as_ref().map(text::waiting).unwrap_or_default(),
                since: rollout.since,
            }
        }),
        warm: service.warm().map(warm),
        last_rollout: service.last_rollout().map(|end| {
            let RolloutEnd {
                from,
                to,
                result,
                why,
            } = end.clone();
            LastRollout {
                from,
                to,
                result,
                reason: why.as_ref().map(text::why),
            }
        }),
    }
}

fn instance_status(service: &Service, instance: &Instance, is_ejected: bool) -> InstanceStatus {
    let warm = service
        .warm()
        .is_some_and(|warm| warm.release == instance.release);
    let state = match (instance.phase, instance.routed, instance.ready) {
        (Phase::Starting, _, _) => InstanceState::Starting,
        (Phase::Stopping, _, _) => InstanceState::Stopping,
        (Phase::Ended, _, _) => InstanceState::Failed,
        (Phase::Running, Routed::Leaving { .. } | Routed::Draining { .. }, _) => {
            InstanceState::Draining
        }
        (Phase::Running, _, false) => InstanceState::Unready,
        (Phase::Running, Routed::Active, true) if is_ejected => InstanceState::Ejected,
        (Phase::Running, Routed::Active, true) => InstanceState::Ready,
        (Phase::Running, _, true) if warm => InstanceState::Warm,
        (Phase::Running, _, true) => InstanceState::Ready,
    };
    InstanceStatus {
        id: instance.id.clone(),
        release: instance.release,
        state,
        address: instance.endpoint,
        pid: instance.pid,
        started_at: instance.started_at.map(|at| at.rfc3339()),
    }
}

/// What a person opens: a socket that listens on every address is reached by this machine's own.
pub(crate) fn url(service: &Service) -> Option<String> {
    let listen = service.policy()?.listen?;
    let reached = match listen {
        SocketAddr::V4(at) if at.ip().is_unspecified() => format!("127.0.0.1:{}", at.port()),
        SocketAddr::V6(at) if at.ip().is_unspecified() => format!("[::1]:{}", at.port()),
        other => other.to_string(),
    };
    Some(format!("http://{reached}/"))
}

pub(crate) fn warm(warm: &Warm) -> WarmStatus {
    WarmStatus {
        number: warm.release,
        until: warm.until,
    }
}

/// The instances whose logs are meant: all that there are of the service.
pub(crate) fn logged(service: &Service) -> Vec<InstanceId> {
    service
        .instances()
        .map(|instance| instance.id.clone())
        .collect()
}

/// The releases of the services that `wanted` picks, newest first.
pub(crate) fn releases(
    core: &Controller,
    wanted: impl Fn(&ServiceKey) -> bool,
) -> Vec<HistoryRelease> {
    let mut releases: Vec<_> = core
        .services()
        .filter(|(key, _)| wanted(key))
        .flat_map(|(key, service)| {
            service.releases().map(|(number, record)| {
                let release = HistoryRelease {
                    environment: key.environment.clone(),
                    service: key.service.clone(),
                    number,
                    image: record.release.image,
                    tag: record.origin.tag.clone(),
                    commit: record.origin.commit.clone(),
                    created_at: record.created_at.rfc3339(),
                    current: service.current() == Some(number),
                };
                (record.created_at, release)
            })
        })
        .collect();
    releases.sort_by(|(a, x), (b, y)| (b, y.number).cmp(&(a, x.number)));
    releases.into_iter().map(|(_, release)| release).collect()
}

/// What a person reads of an entry; newest first, as the entries are.
pub(crate) fn events(recorded: Recorded<StepRecord>) -> impl Iterator<Item = HistoryEvent> {
    let Recorded { state, entry } = recorded;
    let texts = match &entry.fact {
        Fact::Service(step) => step_texts(step),
        Fact::Snapshot(Snapshot { up_to, .. }) => {
            vec![format!(
                "the entries up to {up_to} were folded into a snapshot"
            )]
        }
        Fact::Unknown(raw) => vec![format!("{raw}")],
    };
    let Entry {
        at, actor, subject, ..
    } = entry;
    texts.into_iter().map(move |text| HistoryEvent {
        state,
        at: at.rfc3339(),
        actor: actor.clone(),
        subject: subject.clone(),
        environment: subject.environment().cloned(),
        service: subject.service().map(|key| key.service.clone()),
        text,
    })
}

fn step_texts(step: &StepRecord) -> Vec<String> {
    let mut texts: Vec<_> = text::event(&step.event).into_iter().collect();
    texts.extend(step.notices.iter().map(text::notice));
    texts.reverse();
    texts
}
