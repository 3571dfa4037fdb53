//! The protocol between the planner's side and an engine: commands in, observations out.

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
    /// Stop signal, grace, SIGKILL, and nothing left of it.
    Stop {
        instance: InstanceId,
        generation: Generation,
        #[serde(with = "duration_ms")]
        grace: Duration,
    },
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
