//! What goes into the controller and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kiln_model::api::{ApiError, DownRequest, RequestCount, RollbackRequest, RolloutResult};
use kiln_model::{
    Actor, Command, Digest, FromProxy, Generation, InstanceId, Observation, Plan, ReleaseNumber,
    RoutingTable, ServiceKey, ServiceName, StateId, Timestamp, Why,
};
use kiln_plan::{Action, Event, Notice, ProbeKind, Service};

use crate::refused::Refused;

/// A proxy process, by its pid.
pub type ProxyId = u32;

/// A call of the API that takes time, numbered by who hands it in. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Input {
    /// Answered by one [`Effect::Reply`]. One that was taken goes on by [`Effect::Tell`] and ends with [`Effect::Finished`].
    Call {
        call: CallId,
        actor: Option<Actor>,
        ask: Ask,
    },
    /// The answer to [`Effect::Prepare`].
    Prepared(Result<(), ApiError>),
    /// The answer to [`Effect::Journal`]; an error says why it is not written.
    Journalled(Result<Written, String>),
    Observed(Observation),
    Probed {
        service: ServiceKey,
        instance: InstanceId,
        probe: ProbeKind,
        passes: bool,
    },
    ProxyConnected(ProxyId),
    ProxySaid(ProxyId, FromProxy),
    ProxyGone(ProxyId),
    /// Something of kiln itself is wrong, or is right again.
    Noted {
        concern: Concern,
        problem: Option<String>,
    },
    /// A deadline has passed.
    Timer,
}

#[derive(Clone, Debug)]
pub enum Ask {
    Apply(Box<Plan>),
    Rollback(RollbackRequest),
    Down(DownRequest),
}

/// What of kiln itself a problem is about. One problem each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// It can't be written.
    Journal,
    /// What is in it is not what was written.
    Chain,
    Engine,
    Listen,
    Network,
    Proxy,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write [`crate::Controller::draft`]; answered by [`Input::Journalled`].
    Journal,
    /// See that these images are whole and that sockets listen on these addresses; answered by [`Input::Prepared`].
    Prepare {
        images: BTreeMap<ServiceName, Digest>,
        listen: BTreeMap<ServiceName, SocketAddr>,
    },
    Engine(Command),
    /// Serve this table. Virtual addresses are filled in by who knows them.
    Table {
        proxy: ProxyId,
        table: RoutingTable,
    },
    /// Say your counters.
    Count {
        proxy: ProxyId,
    },
    /// Sockets listen on these addresses, and on no others.
    Listen(BTreeSet<SocketAddr>),
    /// The probes that the service's state asks for run, and no others of it.
    Probe(ServiceKey),
    Reply {
        call: CallId,
        answer: Result<(), Refused>,
    },
    Tell {
        call: CallId,
        service: ServiceKey,
        told: Told,
    },
    /// Nothing more is told to this call.
    Finished(CallId),
    /// Nothing of the service is left.
    Forget(ServiceKey),
}

/// What a call hears of a service.
#[derive(Clone, Debug)]
pub enum Told {
    Noticed {
        at: Timestamp,
        notice: Notice,
    },
    /// What was asked for has ended; its counters are still waited for.
    Ended,
    Outcome(CallEnd),
}

/// How a call ended for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEnd {
    pub from: Option<ReleaseNumber>,
    pub to: Option<ReleaseNumber>,
    pub result: RolloutResult,
    pub why: Option<Why>,
    /// Since the call was taken.
    pub requests: RequestCount,
}

/// What is to be journalled, with the state that it leads to, in one transaction.
#[derive(Clone, Debug)]
pub struct Draft {
    pub at: Timestamp,
    pub actor: Option<Actor>,
    pub record: Record,
    /// It changes the routing table, which gets a generation above its present one.
    pub routes: bool,
}

/// What a write led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The last entry's number.
    pub state: StateId,
    /// The routing table's generation.
    pub table: Generation,
}

#[derive(Clone, Debug)]
pub enum Record {
    /// A step of a service.
    Step {
        service: ServiceKey,
        event: Box<Event>,
        actions: Vec<Action>,
        notices: Vec<Notice>,
        state: Box<Service>,
    },
    /// A proxy serves a newer table than this journal knows: the next one is above it.
    TableRaised { at_least: Generation },
}
