//! The decisions of the data path as pure state: no clock, no socket, no chance of its own.

mod choose;
mod drain;
mod health;
mod names;

pub use choose::{Choice, Place, SetShare, choose};
pub use drain::{DrainAction, Drains};
pub use health::{Health, Verdict};
pub use names::{Reply, ZONE, reply};
