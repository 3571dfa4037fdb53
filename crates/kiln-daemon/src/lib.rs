//! The controller: the owner of all state, the journal, the HTTP API and the probes.
//!
//! [`serve`] is the whole process. One task owns the state ([`owner`]); everything else (connections, probes, the
//! engine's calls) only sends it inputs and carries out what it decided. What is decided is in `kiln-control`.

#![allow(clippy::disallowed_methods)] // the edge: its timers read the clock; the decider gets the time as an argument

mod api;
mod callers;
mod calls;
mod clock;
mod crash;
mod engines;
mod journal;
mod listeners;
mod owner;
mod prober;
mod probes;
mod progress;
mod proxies;
mod serve;
mod text;
mod view;

pub use engines::local::LocalEngine;
pub use journal::{JournalError, images_in_use};
pub use listeners::ListenError;
pub use serve::{DaemonError, DaemonOptions, serve};
