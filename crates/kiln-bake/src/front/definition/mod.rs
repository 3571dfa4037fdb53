//! The definition's front end: an image of `kiln.hcl` as a chain of steps.
//!
//! [`graph`] says which steps there are and what their keys are made of, and is pure; [`carry_out`] carries them out for [`bake`].

pub(crate) mod apt_sources;
pub(crate) mod bake;
pub(crate) mod carry_out;
pub(crate) mod command_check;
pub(crate) mod copy;
pub(crate) mod graph;
pub(crate) mod minimal;
pub(crate) mod request;
pub(crate) mod users;
