//! What stands between clients and instances: the data path, its pure core, and the process that keeps the
//! listening sockets while controller and proxy come and go.
//!
//! [`core`] decides (which instance gets a request, who is ejected, when a drain is over) and touches nothing;
//! [`serve`] is the proxy process; [`supervise`] is its keeper; [`handoff`] is what those two and the controller
//! say to each other.
#![allow(clippy::disallowed_methods)] // serve and supervise are the edge: they read the clock and hand it to core

pub mod core;
pub mod handoff;
mod procfs;
pub mod serve;
pub mod supervise;
