//! Why something happened and what is waited for, as facts. The words for a person are made at the edge, from these.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ExitReason, InstanceId, ReleaseNumber, StartFailure, duration_ms};

/// Why a rollout, or a change of a policy, did not end as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Why {
    /// The new set was not ready before its deadline.
    NotReady {
        release: ReleaseNumber,
        #[serde(with = "duration_ms")]
        within: Duration,
        unready: Unready,
    },
    /// An instance of the new set ended.
    InstanceEnded {
        instance: InstanceId,
        end: InstanceEnd,
        /// Of its output, oldest first.
        last_lines: Vec<String>,
    },
    /// The new set stopped being ready while it was watched.
    LostReadiness {
        release: ReleaseNumber,
        unready: Unready,
    },
    /// Instances of the new set ended with their machine, and their replacements were not ready in time.
    Incomplete {
        release: ReleaseNumber,
        unready: Unready,
    },
    /// A proxy did not take the routes.
    RouteRefused { detail: String },
    /// A person asked for it.
    Asked,
    /// A newer change of the same service took its place.
    Superseded,
    /// The probes of the new policy did not pass on the instances that serve.
    ProbesNotPassing {
        #[serde(with = "duration_ms")]
        within: Duration,
        unready: Unready,
    },
    /// As a kiln before format 2 wrote it: in words.
    Words { text: String },
}

/// What keeps a set from being ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Unready {
    /// Its instances are ready, but not yet for as long as `soak` asks.
    NotSoaked,
    /// Its instances have ended.
    Ended,
    /// The engine has not started them yet.
    Starting { count: u32 },
    /// They run, and a probe does not pass.
    NotPassing { count: u32, probe: Probed },
}

/// What a probe asks of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Probed {
    /// The port accepts a connection.
    Connect,
    /// `GET path` answers 200 to 299.
    Http {
        path: String,
        #[serde(with = "duration_ms")]
        timeout: Duration,
    },
}

/// How an instance came to its end without having been asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum InstanceEnd {
    Exit {
        reason: ExitReason,
    },
    NotStarted {
        failure: StartFailure,
    },
    /// As a kiln before format 2 wrote it: in words.
    Words {
        text: String,
    },
}

/// Where a rollout, a change of a policy or a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// The new set starts and becomes ready.
    Start,
    /// The routes were sent to the proxies and are not confirmed by all.
    Switch,
    /// The new set has traffic and is watched.
    Watch,
    /// Traffic goes back to where the rollout came from.
    Return,
    /// The probes of a new policy are tried before they count.
    Prove,
    /// The service is being removed.
    Remove,
}

impl RolloutPhase {
    /// The word of the API and of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Switch => "switch",
            Self::Watch => "watch",
            Self::Return => "return",
            Self::Prove => "prove",
            Self::Remove => "remove",
        }
    }
}

/// What a service waits for, and in which phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub phase: RolloutPhase,
    pub on: WaitsOn,
    /// What the proxy said that refused the last routes; they are given to it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum WaitsOn {
    /// Instances of the new set to be ready, and to stay so.
    Ready {
        release: ReleaseNumber,
        ready: u32,
        wanted: u32,
    },
    /// Every proxy to confirm the routes to this release.
    Confirmation { release: ReleaseNumber },
    /// The release to hold under traffic.
    Watch { release: ReleaseNumber },
    /// All traffic to be with `to` again, and the set of `from` to end.
    Return {
        from: ReleaseNumber,
        to: Option<ReleaseNumber>,
        why: Why,
    },
    /// The probes of the new policy to pass on instances.
    Probes { passed: u32, wanted: u32 },
    /// Every proxy to confirm the routes of the new policy.
    PolicyRoutes,
    /// Instances to end.
    Removal { instances: u32 },
    /// As a kiln before format 2 wrote it: in words.
    Words { text: String },
}
