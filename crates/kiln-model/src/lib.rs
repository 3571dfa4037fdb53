//! The nouns of kiln, shared by every crate.
//!
//! This crate is pure: no sockets, files, clocks, environment or randomness. What crosses a process
//! boundary (the HTTP API, the proxy's table, the journal) is made of these types and of nothing else,
//! so that two processes of different age can disagree only here.

pub mod api;
mod canonical;
mod digest;
mod engine;
mod ids;
mod image_test;
mod journal;
mod names;
mod plan;
mod policy;
mod reason;
mod release;
mod route;
mod signal;
mod spec;
mod start_failure;
mod time;
mod unknown;

pub use canonical::{CanonicalError, canonical_json};
pub use digest::{Digest, DigestError};
pub use engine::{
    Capabilities, Command, ExitReason, ExitRecord, Observation, SeenInstance, SeenState,
};
pub use ids::{ActionId, Generation, InstanceId, InstanceIdError, ReleaseNumber, StateId};
pub use image_test::{CommandCheck, FileCheck, HttpCheck, TestSpec, TextCheck};
pub use journal::{Actor, Entry, Fact, Snapshot, Subject};
pub use names::{EnvName, ImageName, NameError, ProjectName, ServiceKey, ServiceName, ZONE};
pub use plan::{Change, ChangeKind, FieldChange, Plan, Reason};
pub use policy::{BlueGreen, HttpProbe, Policy, Strategy};
pub use reason::{InstanceEnd, Probed, RolloutPhase, Unready, Waiting, WaitsOn, Why};
pub use release::{Release, ReleaseId, Resources, Tmpfs};
pub use route::{
    Backend, Draining, FromProxy, ReleaseCounters, Route, RoutingTable, TABLE_FORMAT, TableError,
    ToProxy, Weight, WeightError, WeightedSet,
};
pub use signal::{signal_names, signal_number};
pub use spec::{
    BaseSpec, CopySpec, DebianOrigin, DebianSpec, DockerfileSpec, EnvironmentSpec, ImageOrigin,
    ImageSpec, ProjectSpec, SecretSpec, ServiceDefinition, ServiceSpec, UserSpec, is_rolling,
};
pub use start_failure::{StartFailure, StartFault};
pub use time::{Timestamp, date_of, days_of, duration_ms};
pub use unknown::UnknownFields;
