//! What goes into a step and what comes out.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{
    ActionId, ExitRecord, Generation, ImageOrigin, InstanceEnd, InstanceId, Policy, Release,
    ReleaseNumber, StartFailure, Timestamp, Waiting, Why, duration_ms,
};
use serde::{Deserialize, Serialize};

use crate::probation::ProbeKind;
use crate::traffic::RoutedSet;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Event {
    /// Run this release under this policy. The same release as the current one changes the policy alone.
    Deploy {
        release: Box<Release>,
        origin: ImageOrigin,
        policy: Policy,
    },
    SetPolicy {
        policy: Policy,
    },
    /// `None`: back to the release that was current before; while a rollout runs: back to where it came from.
    Rollback {
        to: Option<ReleaseNumber>,
    },
    /// Stop everything; the service is gone when nothing is left.
    Remove,
    Started {
        instance: InstanceId,
        /// `None`: the engine's instances are no processes of this machine.
        pid: Option<u32>,
        /// `None`: it has no port.
        #[serde(default)]
        endpoint: Option<SocketAddr>,
        at: Timestamp,
    },
    StartFailed {
        instance: InstanceId,
        failure: StartFailure,
    },
    Exited {
        instance: InstanceId,
        record: ExitRecord,
    },
    Removed {
        instance: InstanceId,
    },
    /// A probe passes from now on, or no longer.
    Probed {
        instance: InstanceId,
        probe: ProbeKind,
        passes: bool,
    },
    /// Every live proxy serves the route of this generation.
    Confirmed {
        generation: Generation,
    },
    RouteRefused {
        generation: Generation,
        reason: String,
    },
    /// Nothing of the instance is in flight in any live proxy.
    Drained {
        instance: InstanceId,
        cut: u64,
    },
    Timer,
}

impl Event {
    /// A person asked for it: it changes what a plan is made from.
    pub fn is_decision(&self) -> bool {
        match self {
            Self::Deploy { .. } | Self::SetPolicy { .. } | Self::Rollback { .. } | Self::Remove => {
                true
            }
            Self::Started { .. }
            | Self::StartFailed { .. }
            | Self::Exited { .. }
            | Self::Removed { .. }
            | Self::Probed { .. }
            | Self::Confirmed { .. }
            | Self::RouteRefused { .. }
            | Self::Drained { .. }
            | Self::Timer => false,
        }
    }
}

/// What to do. Idempotent by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Action {
    /// Ends with `Started` or `StartFailed`.
    Start {
        id: ActionId,
        instance: InstanceId,
        release: ReleaseNumber,
    },
    /// Ends with `Exited`.
    Stop {
        id: ActionId,
        instance: InstanceId,
        #[serde(with = "duration_ms")]
        grace: Duration,
    },
    /// Ends with `Removed`.
    Remove { id: ActionId, instance: InstanceId },
    /// Ends with `Confirmed` or `RouteRefused`; a newer one replaces it.
    Route {
        id: ActionId,
        generation: Generation,
        sets: Vec<RoutedSet>,
        /// Out of every route, and not yet known to be idle.
        draining: Vec<InstanceId>,
    },
}

/// What a person wants to hear about a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Notice {
    RolloutBegan {
        from: Option<ReleaseNumber>,
        to: ReleaseNumber,
    },
    /// Something else is waited for from now on.
    PhaseEntered {
        wait: Waiting,
    },
    InstanceFailed {
        instance: InstanceId,
        end: InstanceEnd,
        last_lines: Vec<String>,
    },
    Switched {
        to: ReleaseNumber,
        instances: u32,
    },
    WarmUntil {
        release: ReleaseNumber,
        until: Timestamp,
    },
    WarmRetired {
        release: ReleaseNumber,
    },
    /// The new policy holds, and every proxy serves its routes.
    PolicyChanged,
    /// The new policy was not taken: the old one holds.
    PolicyKept {
        why: Why,
    },
    RolloutEnded {
        end: RolloutEnd,
    },
    RouteRefused {
        reason: String,
    },
    /// Nothing of the service runs any more.
    Gone,
}

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutEnd {
    pub from: Option<ReleaseNumber>,
    pub to: ReleaseNumber,
    pub result: RolloutResult,
    pub why: Option<Why>,
}

impl Notice {
    pub fn ends_rollout(&self) -> bool {
        matches!(self, Self::RolloutEnded { .. } | Self::Gone)
    }
}

/// Why an event is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Busy { to: ReleaseNumber },
    NoPrevious,
    UnknownRelease { number: ReleaseNumber },
    AlreadyCurrent { number: ReleaseNumber },
    Gone,
}
