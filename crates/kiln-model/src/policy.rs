//! How a service is run. Changing it replaces no instance.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{UnknownFields, duration_ms};

/// How a service is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub replicas: u32,
    pub strategy: Strategy,
    /// When an instance may get requests. Without one, a service with a port is ready when the port
    /// accepts a connection, a worker when it has started.
    pub ready: Option<HttpProbe>,
    /// When an instance has to be replaced.
    pub live: Option<HttpProbe>,
    /// From the start of an instance until it must be ready.
    #[serde(with = "duration_ms")]
    pub progress_deadline: Duration,
    /// How long every instance of a new set must have been ready without a break before the switch, and how
    /// long the new set is watched after it: one success is not soak.
    #[serde(with = "duration_ms")]
    pub soak: Duration,
    /// How long requests in flight may take to end once their instance is out of the routes.
    #[serde(with = "duration_ms")]
    pub drain_deadline: Duration,
    /// From the stop signal to SIGKILL.
    #[serde(with = "duration_ms")]
    pub stop_grace: Duration,
    /// The host's side of the service; `None` is reachable by no one outside.
    pub listen: Option<SocketAddr>,
    /// Of a policy that a newer kiln wrote.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// How one release replaces another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    BlueGreen(BlueGreen),
}

/// A whole new set is started and made ready, then all traffic is switched to it at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlueGreen {
    /// How long the set that was switched away from is kept running.
    #[serde(with = "duration_ms")]
    pub keep_warm: Duration,
}

/// A GET request to the instance itself; 200 to 299 is a success. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpProbe {
    pub path: String,
    #[serde(with = "duration_ms")]
    pub period: Duration,
    #[serde(with = "duration_ms")]
    pub timeout: Duration,
    /// Successes in a row that make it ready.
    pub successes: u32,
    /// Failures in a row that make it unready.
    pub failures: u32,
}
