//! Decides, and does nothing else: no socket, file, clock or randomness. The daemon and the simulator call the very
//! same step.
//!
//! [`Service`] is the state machine of one service in one environment. The contract of a step:
//!
//! 1. [`Service::handle_event`] with the time and what happened. Time never decreases.
//! 2. [`Service::poll_action`] and [`Service::poll_notice`] until both give `None`.
//! 3. Journal the event, the actions and the service in one transaction; only then carry the actions out.
//! 4. [`Service::poll_timeout`] says when to come back with [`Event::Timer`] if nothing else happens before.
//!
//! After a restart, [`Service::outstanding`] gives every action without an outcome, to be carried out again: actions are
//! idempotent by id.

mod event;
mod instance;
mod invariants;
mod keeper;
mod migrate;
mod mutation;
mod observed;
mod plan;
mod probation;
mod reconcile;
mod record;
mod rollout;
mod service;
mod stage;
mod traffic;
mod waiting;

pub use event::{Action, Event, Notice, Refusal, RolloutEnd};
pub use instance::{Instance, Phase, Routed};
pub use invariants::{Step, Violation};
pub use migrate::migrate_entry;
pub use mutation::Mutation;
pub use plan::{bound, plan};
pub use probation::{ChangeProgress, PolicyChange, ProbeKind, ProbeWanted, Probes};
pub use record::{STATE_FORMAT, StateError, StepRecord, migrate_state};
pub use rollout::{Direction, Rollout};
pub use service::{ReleaseRecord, Service, Warm};
pub use stage::{Gate, Share, Stage, compile};
pub use traffic::{RouteWanted, RoutedSet};
