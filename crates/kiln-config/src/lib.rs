//! `kiln.hcl` → [`kiln_model::ProjectSpec`].
//!
//! This crate is pure: it gets the text of a definition and the values of its variables, and gives a spec in
//! which nothing is left open, or every error at once, each with its place in the text. A setting that this
//! version does nothing with is an error: one that is accepted and ignored would be a lie.

mod diagnostic;
mod image;
mod load;
mod probe;
mod reader;
mod render;
mod section;
mod service;
mod source;
mod suggest;
mod units;
mod value;
mod variable;

pub use diagnostic::{ConfigErrors, Diagnostic, Problem};
pub use load::{Inputs, Loaded, load};
pub use source::{Position, Source};
pub use variable::{VariableOrigin, VariableValue};
