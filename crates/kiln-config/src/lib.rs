//! `kiln.hcl` → [`kiln_model::ProjectSpec`].
//!
//! This crate is pure: it gets the texts of a definition, the values of its variables and a way to ask for files
//! ([`Outside`]), and gives a spec in which nothing is left open, or every error at once, each with its place in the text. A setting that this
//! version does nothing with is an error: one that is accepted and ignored would be a lie.

mod checks;
mod debian;
mod diagnostic;
pub mod dockerfile;
mod each;
mod environment;
mod expression;
mod format;
mod functions;
mod image;
mod image_dockerfile;
mod image_parts;
mod image_test;
mod load;
mod probe;
mod reader;
mod reference;
mod render;
mod secret;
mod section;
mod service;
mod signal;
mod source;
mod suggest;
mod template;
mod types;
pub mod units;
mod value;
mod variable;

pub use diagnostic::{ConfigErrors, Diagnostic, Place, Problem};
pub use format::format;
pub use load::{Inputs, Loaded, load};
pub use reader::Outside;
pub use source::{Position, Source, Sources};
pub use variable::{VariableOrigin, VariableValue};
