//! A seeded world around the controller's core: a virtual clock, an engine, proxies and a journal with faults, an operator who
//! does as he likes with several services, and a controller that is killed between effects. After every event the invariants
//! of the design are checked; at the end, when faults have ceased, everything has to come to rest.
//!
//! The controller is the real one ([`kiln_control::Controller`]), to the last line. So is what drains in the proxies
//! ([`kiln_pool::Drains`]). The shell around them (sockets, SQLite, processes) is simulated.
//!
//! | Invariant | What is checked besides the numbers of the design |
//! |---|---|
//! | 0 | the world comes to rest |
//! | 1 | what is said to be done listens where its policy says |
//! | 4 | a service is only told of refusals of its own routes; what is turned back has its policy back |
//! | 7 | sockets, instances and actions are those that services ask for, and no others |
//! | 10 | an outcome's requests are counted when it is told |
//!
//! [`run`] with the same seed does the same, to the last event: a failure is replayed by its seed.

mod callers;
mod checks;
pub mod conformance;
mod engine;
mod operator;
mod prober;
mod proxies;
mod random;
mod run;
mod subject;
mod world;

pub use kiln_control::Mutation;
pub use run::{Failure, Options, Stats, run};
pub use subject::SimulatedEngine;
