//! What is written where: answers to standard output, progress there too unless that is for a program.

use std::borrow::Cow;
use std::error::Error;
use std::io::{IsTerminal, Write};

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
    let text = shown(text, out.is_terminal());
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
    let mut out = std::io::stderr().lock();
    let text = shown(text, out.is_terminal());
    // Nothing can be told to anyone when standard error is closed.
    let _ = writeln!(out, "{text}");
}

/// What is written may have been said by an instance, by a step or by a file that somebody else wrote. On a terminal its
/// control characters could change the title, the clipboard or what the person read before, so they are shown instead,
/// in caret notation; the second set of them, of which some are one-byte escape sequences, by number.
fn shown(text: &str, is_terminal: bool) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if !is_terminal || text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match u8::try_from(c) {
            _ if is_harmless(c) => shown.push(c),
            // ASCII: `^[` is ESC, `^?` is DEL.
            Ok(byte @ 0..=0x7f) => shown.extend(['^', char::from(byte ^ 0x40)]),
            _ => shown.push_str(&format!("<{:02X}>", u32::from(c))),
        }
    }
    Cow::Owned(shown)
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

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn what_an_instance_says_can_not_change_a_terminal() {
        let said = "a\tb \u{1b}]0;title\u{7} \u{9b}2J \u{7f} caf\u{e9}\rX";
        assert_eq!(
            shown(said, true),
            "a\tb ^[]0;title^G <9B>2J ^? caf\u{e9}^MX"
        );
        assert_eq!(shown(said, false), said);
        assert_eq!(shown("two\nlines", true), "two\nlines");
    }
}
