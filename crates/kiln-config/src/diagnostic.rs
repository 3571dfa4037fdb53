//! What can be wrong with a definition, and where.

use std::ops::Range;

use crate::Source;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error("this is not valid HCL")]
    Syntax,
    #[error("{place} has no block `{name}`")]
    UnknownBlock { place: String, name: String },
    #[error("{place} has no attribute `{name}`")]
    UnknownAttribute { place: String, name: String },
    #[error("{what} is not supported by this version of kiln")]
    Unsupported { what: String },
    #[error("{place} lacks `{name}`")]
    Missing { place: String, name: String },
    #[error("{what} is {found}")]
    WrongType { what: String, found: &'static str },
    #[error("{what} is defined twice")]
    Duplicate { what: String },
    #[error("there is no {kind} `{name}`")]
    UnknownReference { kind: &'static str, name: String },
    #[error("{what} has a value that it can't have: {found}")]
    BadValue { what: String, found: String },
    #[error("{what}")]
    Contradiction { what: String },
    #[error("the variable `{name}` has no value")]
    NoValue { name: String },
}

/// One problem, its place, what was expected there, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub problem: Problem,
    /// Bytes of the text; `None`: it is not about a place in the text, but about what was asked for.
    pub span: Option<Range<usize>>,
    pub expected: String,
    pub help: String,
}

/// All that is wrong with a definition, in the order of the text. Never empty.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", crate::render::errors(.source_text, .diagnostics))]
pub struct ConfigErrors {
    pub source_text: Source,
    pub diagnostics: Vec<Diagnostic>,
}
