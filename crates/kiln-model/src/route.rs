//! The routing table, and what controller and proxy say to each other: JSON values, one a line, over the
//! proxy's control socket.
//!
//! Controller and proxy may be of different versions, and so may be who wrote a saved table and who reads it.
//! Readers therefore ignore fields that they do not know, and every field that is added has a default. What a reader
//! must not ignore raises the table's [format](TABLE_FORMAT).

mod stored;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    CanonicalError, Digest, Generation, InstanceId, ReleaseNumber, ServiceKey, Timestamp,
    canonical_json, duration_ms,
};

pub use stored::{TABLE_FORMAT, TableError};

/// All that the proxy serves. Immutable; replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "stored::StoredTable", into = "stored::StoredTable")]
pub struct RoutingTable {
    pub generation: Generation,
    /// Ordered by service.
    pub routes: Vec<Route>,
    /// Instances that are in no route any more and whose requests in flight may end. Named until the
    /// controller has stopped them, so that a proxy or controller that restarts loses none.
    pub draining: Vec<Draining>,
}

impl RoutingTable {
    /// Tells two tables of one generation apart.
    pub fn digest(&self) -> Result<Digest, CanonicalError> {
        canonical_json(self).map(|json| Digest::of(&json))
    }
}

/// Where the requests of one service go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub service: ServiceKey,
    /// The service's own generation; equal generations of one service have equal routes.
    pub generation: Generation,
    /// On the host; also the name of the listening descriptor in the supervisor. `None`: only instances reach it.
    pub listen: Option<SocketAddr>,
    /// The service's virtual address, as instances reach it, with the port of the release that serves. Connections to it
    /// come by the root's one inside listener.
    pub inside: Option<SocketAddr>,
    /// How traffic is shared between releases, ordered by release. Empty: no set serves, every request is answered 503.
    pub sets: Vec<WeightedSet>,
}

/// The instances of one release that get a share of a service's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedSet {
    pub release: ReleaseNumber,
    /// The set's share. Shares count relative to those of the sets that have instances, so that a set without instances
    /// costs no request while another has some. A set of weight 0 gets nothing.
    pub weight: Weight,
    /// Ordered by instance.
    pub backends: Vec<Backend>,
}

impl WeightedSet {
    /// A set that gets all traffic.
    pub fn whole(release: ReleaseNumber, backends: Vec<Backend>) -> Self {
        Self {
            release,
            weight: Weight::WHOLE,
            backends,
        }
    }
}

/// A share of a service's traffic, in thousandths: 0 to 1000.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(u16);

/// A weight above 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a weight is 0 to 1000 thousandths, not {0}")]
pub struct WeightError(pub u16);

impl Weight {
    pub const NONE: Self = Self(0);
    pub const WHOLE: Self = Self(1000);

    /// In thousandths.
    pub fn permille(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Weight {
    type Error = WeightError;

    fn try_from(permille: u16) -> Result<Self, WeightError> {
        if permille > Self::WHOLE.0 {
            return Err(WeightError(permille));
        }
        Ok(Self(permille))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ‰", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    pub instance: InstanceId,
    pub address: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    pub service: ServiceKey,
    pub release: ReleaseNumber,
    pub instance: InstanceId,
    /// Past it the proxy cuts what is left: 504 where no answer has begun.
    #[serde(with = "duration_ms")]
    pub deadline: Duration,
}

/// Controller to proxy. A message of a kind that the proxy does not know is skipped.
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

/// Proxy to controller. A message of a kind that the controller does not know is skipped.
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
    /// older one. But for services that a `Refused` of this generation named before it: their routes stay as they were.
    /// Said again, without that, once they are served as well.
    Confirmed { generation: Generation },
    /// Of the table of this generation, something is not served.
    Refused {
        generation: Generation,
        /// The generation that is served already, where that is why: only a higher one is taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        served: Option<Generation>,
        /// The services whose routes are refused; the rest of the table is served. Empty: the whole table is refused.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        services: Vec<ServiceKey>,
        /// [`RoutingTable::digest`] of the table that is served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
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
pub struct ReleaseCounters {
    pub service: ServiceKey,
    /// 0: no release was there to serve it. Requests that no instance was there for count at the release with the greatest
    /// weight.
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
