//! The routing table, and what controller and proxy say to each other: JSON values, one a line, over the
//! proxy's control socket.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Generation, InstanceId, ReleaseNumber, ServiceKey, Timestamp, duration_ms};

/// All that the proxy serves. Immutable; replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingTable {
    pub generation: Generation,
    /// Ordered by service.
    pub routes: Vec<Route>,
    /// Instances that are in no route any more and whose requests in flight may end. Named until the
    /// controller has stopped them, so that a proxy or controller that restarts loses none.
    pub draining: Vec<Draining>,
}

/// Where the requests of one service go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub service: ServiceKey,
    /// The service's own generation; equal generations of one service have equal routes.
    pub generation: Generation,
    /// On the host; also the name of the listening descriptor in the supervisor. `None`: only instances reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// The service's virtual address, as instances reach it, with the port of the active release. Connections to it come
    /// by the root's one inside listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<SocketAddr>,
    /// `None`: no set serves, every request is answered 503.
    pub active: Option<SetRoute>,
}

/// The instances of one release that get traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRoute {
    pub release: ReleaseNumber,
    /// Ordered by instance. Empty: 503.
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    pub instance: InstanceId,
    pub address: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draining {
    pub service: ServiceKey,
    pub release: ReleaseNumber,
    pub instance: InstanceId,
    /// Past it the proxy cuts what is left: 504 where no answer has begun.
    #[serde(with = "duration_ms")]
    pub deadline: Duration,
}

/// Controller to proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ToProxy {
    /// Serve this from now on. Older than the one served: refused with `Refused`. The one served: confirmed again,
    /// and `Drained` said again for every draining instance that is.
    Table { table: RoutingTable },
    /// Answered by `Counters`.
    Count,
    /// Accept no more connections, finish what is in flight (keep-alive connections get `Connection: close`), then exit.
    Retire,
}

/// Proxy to controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum FromProxy {
    /// First on each connection.
    Hello {
        pid: u32,
        version: String,
        generation: Generation,
    },
    /// Every worker serves this generation, and it is saved: no request that arrives from now on goes by an
    /// older one.
    Confirmed { generation: Generation },
    Refused {
        generation: Generation,
        reason: String,
    },
    /// Nothing of this instance is in flight any more; `cut` requests were ended by the deadline.
    Drained {
        generation: Generation,
        instance: InstanceId,
        cut: u64,
    },
    Counters {
        at: Timestamp,
        counters: Vec<ReleaseCounters>,
    },
    /// Passive ejection: the instance failed requests and gets none for now (`ejected`), or gets them again.
    Ejected { instance: InstanceId, ejected: bool },
}

/// What was served since the proxy started, by release. Never decreases while the proxy lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseCounters {
    pub service: ServiceKey,
    /// 0: no release was there to serve it.
    pub release: ReleaseNumber,
    /// Requests whose answer was sent whole.
    pub served: u64,
    /// Requests that the proxy could not finish with the instance's own whole answer: no connection, no answer in
    /// time, an answer cut in the middle, nobody ready.
    pub failed: u64,
    /// Requests that the client itself left (499).
    pub cancelled: u64,
    /// Answers by class: 1xx to 5xx, those of the proxy itself included.
    pub status: [u64; 5],
    pub in_flight: u64,
}
