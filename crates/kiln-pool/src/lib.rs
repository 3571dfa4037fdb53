//! What the proxy decides, as pure state: no clock, no socket, no chance of its own. The proxy feeds it from real sockets,
//! the simulator from a world of its own.
//!
//! [`choose`] picks the instance of a request, [`Health`] ejects those that fail, [`Drains`] says when an instance has
//! nothing in flight any more or has had its time, [`Attempt`] whether a request is sent again, and [`reply`] answers questions for services' names.

#![warn(clippy::wildcard_enum_match_arm, clippy::let_underscore_must_use)]

mod choose;
mod clock;
mod drain;
mod health;
mod names;
mod retry;

pub use choose::{Choice, Place, SetShare, choose};
pub use clock::{LimitClock, Moment};
pub use drain::{DrainAction, Drains};
pub use health::{Health, Verdict};
pub use names::{Reply, reply};
pub use retry::{Attempt, Fault, Progress, RETRIES, Retry};
