//! The controller's core: everything that the controller decides, and nothing that it does.
//!
//! [`Controller`] owns the services of a root, the routing table, and what proxies, engine and callers are waited for. It is
//! sans-IO: the daemon and the simulator drive the very same one. The contract:
//!
//! 1. [`Controller::handle_input`] with the time and what happened.
//! 2. [`Controller::poll_effect`] until it gives `None`; each effect is carried out before the next is asked for. An effect
//!    that is answered at once ([`Effect::Journal`], [`Effect::Prepare`]) is answered by an input, whose effects come next.
//! 3. [`Controller::poll_timeout`] says when to come back with [`Input::Timer`] if nothing else happens before.
//!
//! **Decide, then journal, then act.** A step of a service is decided on a copy. [`Effect::Journal`] asks for it to be
//! written; its actions become effects only when [`Input::Journalled`] says that it is. Until then everything else waits in
//! one queue, in the order in which it happened. A step that can't be written is tried again, and nothing overtakes it.
//!
//! Nothing here is lost with the process: a new controller is made of what the journal holds ([`Recovered`]), asks the
//! engine what there is ([`kiln_model::Command::Sync`]), and issues every action again that has no outcome.

mod calls;
mod clock;
mod controller;
mod engine;
mod input;
mod listeners;
mod mutation;
mod proxies;
mod refused;
mod table;
mod traffic;
mod waiters;

pub use controller::{Controller, Recovered};
pub use input::{
    Ask, CallEnd, CallId, Concern, Draft, Effect, Input, ProxyId, Record, Told, Written,
};
pub use mutation::Mutation;
pub use refused::Refused;
