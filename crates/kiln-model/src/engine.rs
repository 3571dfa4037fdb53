//! The protocol between the controller and an engine: commands in, observations out.
//!
//! An engine tries each command once and says how that went; the controller tries again. Commands are idempotent: one that was
//! carried out before is answered with what became of it. What an engine is given is complete, and what it says is by
//! instance: it knows nothing of rollouts, and the controller nothing of bridges, virtual addresses or firewalls.
//!
//! [`Capabilities`] say what an engine does itself. An engine that keeps sets is told how many instances a set has
//! ([`Command::Scale`]), and its observations bring the instances.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Generation, InstanceId, Release, ReleaseNumber, ServiceKey, StartFailure, Timestamp,
    duration_ms,
};

/// What an engine is asked to do. Idempotent by instance; one with an older generation than the last
/// that the instance has seen is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Start {
        instance: InstanceId,
        generation: Generation,
        service: ServiceKey,
        number: ReleaseNumber,
        release: Box<Release>,
    },
    /// Stop signal, grace, SIGKILL. Answered by `Exited`.
    Stop {
        instance: InstanceId,
        generation: Generation,
        #[serde(with = "duration_ms")]
        grace: Duration,
    },
    /// End at once whatever of it still runs, and leave nothing. Answered by `Removed`, also where nothing was there.
    Remove {
        instance: InstanceId,
        generation: Generation,
    },
    /// The set of this release has so many instances. Only for engines that keep sets.
    Scale {
        service: ServiceKey,
        number: ReleaseNumber,
        generation: Generation,
        release: Box<Release>,
        replicas: u32,
    },
    /// Say everything that there is, then go on saying what changes. Answered by `Synced`.
    Sync,
}

/// What an engine does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// It keeps sets at their size: it takes `Scale`, and neither `Start`, `Stop` nor `Remove`.
    #[serde(default)]
    pub keeps_sets: bool,
    /// It probes its instances and says which are ready.
    #[serde(default)]
    pub probes: bool,
}

/// An instance, as an engine finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenInstance {
    pub instance: InstanceId,
    pub state: SeenState,
    /// What the engine could not do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeenState {
    Running,
    Ended(ExitRecord),
}

/// What an engine has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    Started {
        instance: InstanceId,
        /// `None`: the engine's instances are no processes of this machine.
        pid: Option<u32>,
        /// Where it is reached; `None`: it has no port.
        endpoint: Option<SocketAddr>,
        at: Timestamp,
    },
    StartFailed {
        instance: InstanceId,
        failure: StartFailure,
    },
    /// The instance ended, asked or not.
    Exited {
        instance: InstanceId,
        record: ExitRecord,
    },
    /// Nothing of the instance is left: no process, mount, cgroup, address or file.
    Removed { instance: InstanceId },
    /// The answer to `Sync`: every instance of which something is left.
    Synced { instances: Vec<SeenInstance> },
    /// What there is can't be told.
    SyncFailed { problem: String },
    /// A `Stop` or `Remove` of the instance failed. The controller gives it again.
    Failed {
        instance: InstanceId,
        problem: String,
    },
    /// Of engines that probe: the instance is ready from now on, or no longer.
    Probed { instance: InstanceId, ready: bool },
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRecord {
    pub reason: ExitReason,
    pub at: Timestamp,
    /// The last lines of its output, oldest first.
    pub last_lines: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ExitReason {
    Exited {
        code: i32,
    },
    Signalled {
        signal: i32,
    },
    /// The kernel killed it for its memory limit.
    OutOfMemory {
        limit: Option<u64>,
    },
    /// Its processes were gone when kiln looked: a reboot, or a shim that was killed.
    Lost,
}
