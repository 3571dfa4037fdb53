//! The decisions of the data path as pure state: no clock, no socket, no chance of its own.

mod choose;
mod drain;
mod health;

pub use choose::{Choice, choose};
pub use drain::{DrainAction, Drains};
pub use health::{Health, Verdict};
