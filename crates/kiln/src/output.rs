//! What is written where: answers to standard output, progress there too unless that is for a program.

use std::error::Error;
use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    Person,
    /// Standard output is JSON and nothing else.
    Program,
}

impl Audience {
    pub(crate) fn of(json: bool) -> Self {
        if json { Self::Program } else { Self::Person }
    }

    /// One line of progress.
    pub(crate) fn progress(self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Person => line(text),
            Self::Program => {
                warning_line(text);
                Ok(())
            }
        }
    }
}

/// A line of the answer.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

/// An answer for a program, on one line.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))?;
    line(&text)
}

/// Aside, to standard error.
pub(crate) fn warning(text: &str) {
    warning_line(&format!("warning: {text}"));
}

/// Something whole that is told aside.
pub(crate) fn aside(text: &str) {
    warning_line(text);
}

fn warning_line(text: &str) {
    // Nothing can be told to anyone when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn failure(failure: &Failure) {
    if let Failure::Output(_) = failure {
        return;
    }
    let mut text = match failure {
        // Each of its errors begins with the word.
        Failure::Definition(errors) => errors.to_string(),
        Failure::Dockerfile(error) => error.to_string(),
        Failure::Instruction { place, .. } => place.to_string(),
        // Asked for, so no error.
        interrupted @ Failure::Interrupted { .. } => interrupted.to_string(),
        other => format!("error: {other}"),
    };
    let mut cause = failure.source();
    while let Some(error) = cause {
        text.push_str(&format!("\n  caused by: {error}"));
        cause = error.source();
    }
    if let Some(hint) = failure.hint() {
        text.push_str(&format!("\n  help: {hint}"));
    }
    warning_line(&text);
}
