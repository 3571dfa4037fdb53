//! A seeded world around the planner: a virtual clock, an engine and proxies with faults, an operator who does as he
//! likes, and a controller that is killed between effects. After every event the invariants of the design are checked; at
//! the end, when faults have ceased, everything has to come to rest.
//!
//! [`run`] with the same seed does the same, to the last event: a failure is replayed by its seed.

mod checks;
mod engine;
mod proxies;
mod random;
mod run;
mod world;

pub use kiln_plan::Mutation;
pub use run::{Failure, Options, Stats, run};
