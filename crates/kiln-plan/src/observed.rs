//! What the engine has seen of instances: what each means for the state, before anything is decided from it.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_model::{ExitReason, ExitRecord, InstanceEnd, InstanceId, StartFailure, Timestamp, Why};

use crate::event::{Action, Notice};
use crate::instance::Phase;
use crate::keeper::Failure;
use crate::service::Service;
use crate::stage::Share;

/// Ready for that long, and what it dies of later is a new story.
const HEALTHY: Duration = Duration::from_secs(10);
/// Instances of a new set that may end before the switch: with the second one the release is broken.
const EXITS_BEFORE_FAILURE: u32 = 2;

/// What the engine says of an instance that it has started.
pub(crate) struct Started {
    pub(crate) pid: Option<u32>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) at: Timestamp,
}

impl Service {
    pub(crate) fn started(&mut self, now: Timestamp, id: &InstanceId, started: Started) {
        self.outcome_of(id, |action| matches!(action, Action::Start { .. }));
        let port = self
            .instances
            .get(id)
            .and_then(|instance| self.releases.get(&instance.release)?.release.port);
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.phase != Phase::Starting {
            return;
        }
        let Started { pid, endpoint, at } = started;
        instance.phase = Phase::Running;
        instance.pid = pid;
        instance.endpoint = endpoint;
        instance.started_at = Some(at);
        // A worker listens nowhere: it is ready when it runs.
        if port.is_none() {
            instance.becomes_ready(now);
            instance.lived = true;
        }
    }

    pub(crate) fn start_failed(&mut self, now: Timestamp, id: &InstanceId, failure: StartFailure) {
        self.outcome_of(id, |action| matches!(action, Action::Start { .. }));
        self.ended(now, id, InstanceEnd::NotStarted { failure }, Vec::new());
    }

    pub(crate) fn exited(&mut self, now: Timestamp, id: &InstanceId, record: ExitRecord) {
        let ExitRecord {
            reason,
            at: _,
            last_lines,
        } = record;
        self.outcome_of(id, |action| {
            matches!(action, Action::Start { .. } | Action::Stop { .. })
        });
        self.ended(now, id, InstanceEnd::Exit { reason }, last_lines);
    }

    fn ended(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        end: InstanceEnd,
        last_lines: Vec<String>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.phase == Phase::Ended {
            return;
        }
        let asked = instance.phase == Phase::Stopping;
        let release = instance.release;
        let healthy = instance
            .ready_since
            .is_some_and(|since| now.since(since) >= HEALTHY);
        instance.phase = Phase::Ended;
        instance.becomes_unready();
        let action = self.next_action();
        self.issue(Action::Remove {
            id: action,
            instance: id.clone(),
        });
        if asked {
            return;
        }
        let (permanent, lost) = match &end {
            InstanceEnd::Exit { reason } => (false, *reason == ExitReason::Lost),
            InstanceEnd::NotStarted { failure } => (failure.is_permanent(), false),
            InstanceEnd::Words { .. } => (false, false),
        };
        self.keeper.failed(now, release, &Failure { healthy, lost });
        self.notices.push_back(Notice::InstanceFailed {
            instance: id.clone(),
            end: end.clone(),
            last_lines: last_lines.clone(),
        });
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        if rollout.to != release || lost || rollout.is_going_back() {
            return;
        }
        let fails = if rollout.traffic() == Share::NONE {
            rollout.exits += 1;
            permanent || rollout.exits >= EXITS_BEFORE_FAILURE
        } else {
            rollout.from.is_some()
        };
        if fails {
            let why = Why::InstanceEnded {
                instance: id.clone(),
                end,
                last_lines,
            };
            self.turn_back(now, why);
        }
    }

    pub(crate) fn removed(&mut self, id: &InstanceId) {
        self.outcome_of(id, |_| true);
        self.instances.remove(id);
    }

    /// The outcome of what was asked of an instance is known.
    fn outcome_of(&mut self, id: &InstanceId, which: impl Fn(&Action) -> bool) {
        self.outstanding.retain(|_, action| {
            let about = match action {
                Action::Start { instance, .. }
                | Action::Stop { instance, .. }
                | Action::Remove { instance, .. } => instance == id,
                Action::Route { .. } => false,
            };
            !(about && which(action))
        });
    }
}
