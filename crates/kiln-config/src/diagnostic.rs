//! What can be wrong with a definition, and where.

use std::ops::Range;

use crate::{Position, Sources};

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
    #[error("the variable `{name}` has a value that is not valid: {message}")]
    Invalid { name: String, message: String },
    #[error("{what} depends on itself")]
    Cycle { what: String },
    #[error("there is a sensitive value, of {origin}, in {what}")]
    Sensitive { what: String, origin: String },
    #[error("the file `{path}` can't be read: {why}")]
    File { path: String, why: String },
    #[error("{what} is too large")]
    TooLarge { what: String },
}

/// One problem, its place, what was expected there, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub problem: Problem,
    /// Bytes of the texts, counted through all of them; `None`: it is not about a place in the text, but about what was asked for.
    pub span: Option<Range<usize>>,
    pub expected: String,
    pub help: String,
}

/// A place as a person finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub start: Position,
    /// The first position behind it.
    pub end: Position,
}

/// All that is wrong with a definition, in the order of the text. Never empty.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", crate::render::errors(.sources, .diagnostics))]
pub struct ConfigErrors {
    pub sources: Sources,
    pub diagnostics: Vec<Diagnostic>,
}

impl ConfigErrors {
    /// `None` for what has no place in a text.
    pub fn place(&self, diagnostic: &Diagnostic) -> Option<Place> {
        let span = diagnostic.span.as_ref()?;
        let (source, start) = self.sources.at(span.start)?;
        Some(Place {
            file: source.name.clone(),
            start: source.position(start),
            end: source.position(start + span.len()),
        })
    }
}
