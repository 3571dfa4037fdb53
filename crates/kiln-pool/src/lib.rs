//! What the proxy decides, as pure state: no clock, no socket, no chance of its own. The proxy feeds it from real sockets,
//! the simulator from a world of its own.
//!
//! [`choose`] picks the instance of a request, [`Health`] ejects those that fail, [`Drains`] says when an instance has
//! nothing in flight any more or has had its time, and [`reply`] answers questions for services' names.

mod choose;
mod clock;
mod drain;
mod health;
mod names;

pub use choose::{Choice, Place, SetShare, choose};
pub use clock::{LimitClock, Moment};
pub use drain::{DrainAction, Drains};
pub use health::{Health, Verdict};
pub use names::{Reply, reply};
