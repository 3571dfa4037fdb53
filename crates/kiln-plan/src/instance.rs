//! One instance, as the planner sees it.

use std::net::SocketAddr;

use kiln_model::{Generation, InstanceId, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    pub release: ReleaseNumber,
    pub phase: Phase,
    pub routed: Routed,
    /// Its probe passes.
    pub ready: bool,
    /// Since when without a break.
    pub ready_since: Option<Timestamp>,
    /// It has to be replaced: its live probe failed.
    pub doomed: bool,
    /// Its live probe has passed once: from then on it counts.
    #[serde(default)]
    pub lived: bool,
    /// Where it is reached; `None` before it started, and where it has no port.
    pub endpoint: Option<SocketAddr>,
    pub pid: Option<u32>,
    pub started_at: Option<Timestamp>,
    /// When it was asked for.
    pub asked_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Starting,
    Running,
    /// Told to stop.
    Stopping,
    /// Ended; what is left of it is being removed.
    Ended,
}

/// What proxies may still do with an instance. Only `Never` and `Drained` may be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routed {
    /// It was in no route yet.
    Never,
    /// It is in the present route.
    Active,
    /// It left the routes with `generation`, which is not confirmed yet.
    Leaving { generation: Generation },
    /// Every proxy has confirmed a route without it; requests may be in flight until `deadline`.
    Draining {
        generation: Generation,
        deadline: Timestamp,
    },
    /// Nothing of it is in flight.
    Drained,
}

impl Instance {
    /// It runs or will.
    pub fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }

    /// The engine had started it when it was last heard of.
    pub fn has_started(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Stopping)
    }

    /// It counts towards what its set needs.
    pub(crate) fn counts(&self) -> bool {
        self.is_alive() && !self.doomed
    }

    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running && self.ready
    }

    pub(crate) fn becomes_ready(&mut self, now: Timestamp) {
        if self.phase == Phase::Running && !self.ready {
            self.ready = true;
            self.ready_since = Some(now);
        }
    }

    pub(crate) fn becomes_unready(&mut self) {
        self.ready = false;
        self.ready_since = None;
    }

    /// A proxy may still send to it or wait for it.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(
            self.routed,
            Routed::Leaving { .. } | Routed::Draining { .. }
        )
    }
}
