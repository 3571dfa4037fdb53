//! What the daemon's HTTP API says and hears: JSON over the unix socket `ROOT/run/kiln.sock`.
//!
//! | Method and path | Body | Answer |
//! |---|---|---|
//! | `GET /v1/status[?environment=E]` | | [`Status`] |
//! | `POST /v1/plan` | [`crate::EnvironmentSpec`] | [`crate::Plan`] |
//! | `POST /v1/apply` | [`crate::Plan`] | stream of [`Progress`], one JSON value a line |
//! | `POST /v1/rollback` | [`RollbackRequest`] | stream of [`Progress`] |
//! | `POST /v1/down` | [`DownRequest`] | stream of [`Progress`] |
//! | `GET /v1/history?environment=E&service=S` | | [`History`] |
//! | `GET /v1/events[?after=N&environment=E&service=S&kind=K&limit=N&follow=BOOL]` | | stream of [`Event`] |
//! | `GET /v1/logs?environment=E&service=S&lines=N&follow=BOOL[&instance=I]` | | stream of [`LogLine`] |
//! | `GET /v1/verify` | | the number of the journal's last entry, after all were checked |
//! | `GET /v1/ping` | | 204, once the controller's owner of state has answered |
//! | `POST /v1/shutdown` | | 204; controller, proxy and supervisor end, instances are stopped first |
//!
//! Anything but 2xx has an [`ApiError`] as its body. Field names and their meaning are stable.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    Actor, Digest, Entry, EnvName, InstanceId, ProjectName, ReleaseNumber, ServiceName, StateId,
    Subject, Timestamp,
};

/// Why a call was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub code: ErrorCode,
    /// What is wrong, where, and what to do.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    BadRequest,
    NotFound,
    /// The plan's parent is no longer current: plan again.
    StalePlan,
    /// A rollout of the same service is running.
    Busy,
    /// A port is taken, an image is missing …
    Precondition,
    /// The journal can't be written, the engine can't be reached …
    Unavailable,
    Internal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub services: Vec<ServiceStatus>,
    /// What is wrong with kiln itself (journal unwritable, no proxy …), for a person. Empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: ServiceName,
    pub environment: EnvName,
    pub project: ProjectName,
    /// `None`: the service listens nowhere on the host.
    pub url: Option<String>,
    /// The release that has the traffic; `None` before the first is ready.
    pub release: Option<ReleaseStatus>,
    pub instances: Vec<InstanceStatus>,
    /// `None`: none is running.
    pub rollout: Option<RolloutStatus>,
    /// The release that is kept running for a rollback, and until when.
    pub warm: Option<WarmStatus>,
    /// How the last rollout ended; `None` before the first.
    pub last_rollout: Option<LastRollout>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseStatus {
    pub number: ReleaseNumber,
    pub image: Digest,
    pub commit: Option<String>,
    pub tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    pub id: InstanceId,
    pub release: ReleaseNumber,
    pub state: InstanceState,
    pub address: Option<SocketAddr>,
    pub pid: Option<u32>,
    /// RFC 3339.
    pub started_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    Starting,
    /// Started, its probe has not passed yet or passes no more.
    Unready,
    Ready,
    /// Its probe passes, and it failed requests: a proxy sends it none for a while.
    Ejected,
    /// Ready and of the set that is kept for a rollback.
    Warm,
    Draining,
    Stopping,
    /// Ended without having been asked to; its replacement waits for its back-off.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    pub from: Option<ReleaseNumber>,
    pub to: ReleaseNumber,
    pub phase: String,
    /// What it waits on, and why, for a person.
    pub waits_on: String,
    pub since: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStatus {
    pub number: ReleaseNumber,
    pub until: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRollout {
    pub from: Option<ReleaseNumber>,
    pub to: ReleaseNumber,
    pub result: RolloutResult,
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutResult {
    /// All traffic is with the release that was asked for.
    Done,
    /// Nothing had to change.
    Unchanged,
    /// The new set failed; all traffic is with the release it came from.
    RolledBack,
    /// The first release of a service failed: there was nothing to go back to.
    Failed,
    /// The service was removed.
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    pub environment: EnvName,
    pub service: ServiceName,
    /// `None`: the release before the current one.
    pub to: Option<ReleaseNumber>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownRequest {
    /// `None`: every environment.
    pub environment: Option<EnvName>,
    /// `None`: every project.
    pub project: Option<ProjectName>,
}

/// One line of the answer to a call that takes time. The last ones are `Outcome`, one for each service, or one `Error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Progress {
    /// A rollout entered a phase or waits on something else.
    Step {
        service: ServiceName,
        at: Timestamp,
        phase: String,
        message: String,
    },
    Outcome {
        outcome: Outcome,
    },
    Error {
        error: ApiError,
    },
}

/// How it ended for one service. `apply --json` and `rollback --json` print it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub service: ServiceName,
    pub environment: EnvName,
    pub from: Option<ReleaseNumber>,
    pub to: Option<ReleaseNumber>,
    pub result: RolloutResult,
    /// Why it did not end as asked, with the last lines of the instance's log where there are some.
    pub reason: Option<String>,
    pub duration_ms: u64,
    /// Of the service, from the start of the rollout to its end.
    pub requests: RequestCount,
    /// What each phase took.
    pub phases: Vec<PhaseTime>,
    pub warm: Option<WarmStatus>,
    pub url: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    pub served: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub phase: String,
    /// Microseconds: a warm switch takes less than a millisecond or two.
    pub duration_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Newest first.
    pub releases: Vec<HistoryRelease>,
    /// Newest first.
    pub events: Vec<HistoryEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRelease {
    pub environment: EnvName,
    pub service: ServiceName,
    pub number: ReleaseNumber,
    pub image: Digest,
    pub tag: String,
    pub commit: Option<String>,
    pub created_at: String,
    /// It has the traffic.
    pub current: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEvent {
    pub state: StateId,
    pub at: String,
    /// Who asked; `None`: kiln itself.
    pub actor: Option<Actor>,
    /// What it is about.
    pub subject: Subject,
    /// Of the subject, where it is one or is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    pub text: String,
}

/// One entry of the journal. Their numbers grow by one; where the oldest were folded, the first is a higher one, and a
/// `snapshot` says so. Whoever breaks off goes on with `after` the last number that it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub state: StateId,
    #[serde(flatten)]
    pub entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub instance: InstanceId,
    pub at: Timestamp,
    /// `stdout` or `stderr`; `kiln` where kiln itself says something in between.
    pub stream: String,
    pub line: String,
    /// So many lines are missing here, because they were not read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}
