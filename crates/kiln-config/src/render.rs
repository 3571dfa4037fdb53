//! Diagnostics as plain text: the same on a terminal, in a log and in a golden file.

use std::fmt::Write;

use crate::{Diagnostic, Source, Sources};

pub(crate) fn errors(sources: &Sources, diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        one(&mut out, sources, diagnostic);
        out.push('\n');
    }
    let first = sources.first().map_or("", |source| source.name.as_str());
    let mut files: Vec<&str> = Vec::new();
    for diagnostic in diagnostics {
        let file = match &diagnostic.span {
            Some(span) => sources
                .at(span.start)
                .map_or(first, |(source, _)| source.name.as_str()),
            None => first,
        };
        if !files.contains(&file) {
            files.push(file);
        }
    }
    let count = diagnostics.len();
    let plural = if count == 1 { "" } else { "s" };
    // Writing to a String cannot fail.
    let _ = write!(out, "{count} error{plural} in {}", files.join(", "));
    out
}

fn one(out: &mut String, sources: &Sources, diagnostic: &Diagnostic) {
    let Diagnostic {
        problem,
        span,
        expected,
        help,
    } = diagnostic;
    let name = sources.first().map_or("", |source| source.name.as_str());
    let found = span.as_ref().and_then(|span| {
        let (source, at) = sources.at(span.start)?;
        Some((source, at, span.len()))
    });
    place(
        out,
        &format!("error: {problem}"),
        found,
        name,
        expected,
        help,
    );
}

/// A headline, the line of the text with carets below it, and what to do. `found`: the text, a byte of it, and how many. `name`: what
/// is shown without that.
pub(crate) fn place(
    out: &mut String,
    headline: &str,
    found: Option<(&Source, usize, usize)>,
    name: &str,
    expected: &str,
    help: &str,
) {
    let _ = writeln!(out, "{headline}");
    let indent = match found {
        None => {
            let _ = writeln!(out, "  --> {name}");
            if !expected.is_empty() {
                let _ = writeln!(out, "   = expected: {expected}");
            }
            3
        }
        Some((source, at, length)) => {
            let position = source.position(at);
            let (start, line) = source.line_at(at);
            let number = position.line.to_string();
            let pad = " ".repeat(number.len());
            let _ = writeln!(
                out,
                "{pad} --> {}:{}:{}",
                source.name, position.line, position.column
            );
            let _ = writeln!(out, "{pad} |");
            let _ = writeln!(out, "{number} | {line}");
            // Tabs stay tabs below, so that the caret stands right whatever their width.
            let lead: String = line
                .chars()
                .take(position.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let end = (at + length).min(start + line.len()).max(at);
            let width = source
                .text
                .get(at..end)
                .map_or(1, |text| text.chars().count())
                .max(1);
            let carets = "^".repeat(width);
            let _ = writeln!(out, "{pad} | {lead}{carets} {expected}");
            number.len() + 1
        }
    };
    if !help.is_empty() {
        let _ = writeln!(out, "{:indent$}= help: {help}", "");
    }
}
