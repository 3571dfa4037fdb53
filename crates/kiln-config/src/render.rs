//! Diagnostics as plain text: the same on a terminal, in a log and in a golden file.

use std::fmt::Write;

use crate::{Diagnostic, Source};

pub(crate) fn errors(source: &Source, diagnostics: &[Diagnostic]) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        one(&mut out, source, diagnostic);
        out.push('\n');
    }
    let count = diagnostics.len();
    let plural = if count == 1 { "" } else { "s" };
    // Writing to a String cannot fail.
    let _ = write!(out, "{count} error{plural} in {}", source.name);
    out
}

fn one(out: &mut String, source: &Source, diagnostic: &Diagnostic) {
    let Diagnostic {
        problem,
        span,
        expected,
        help,
    } = diagnostic;
    let _ = writeln!(out, "error: {problem}");
    let indent = match span {
        None => {
            let _ = writeln!(out, "  --> {}", source.name);
            if !expected.is_empty() {
                let _ = writeln!(out, "   = expected: {expected}");
            }
            3
        }
        Some(span) => {
            let position = source.position(span.start);
            let (start, line) = source.line_at(span.start);
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
            let end = span.end.min(start + line.len()).max(span.start);
            let width = source
                .text
                .get(span.start..end)
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
