//! The engines that the controller drives, behind the protocol of `kiln-model`: [`kiln_model::Command`] in,
//! [`kiln_model::Observation`] out. The controller speaks nothing else with them.
//!
//! What is particular to this host (bridge, virtual addresses, firewall) is in [`local`] as well, as calls of the shell: it
//! is no business of the controller's core.

pub(crate) mod local;
