//! What is known while a definition is read, and what was found wrong so far.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::value::Value;
use crate::{Diagnostic, Problem, Source};

pub(crate) struct Reader<'a> {
    pub(crate) source: &'a Source,
    /// `None`: defined, but something is wrong with it, which is reported already.
    pub(crate) variables: BTreeMap<String, Option<Value>>,
    pub(crate) images: BTreeSet<String>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self {
            source,
            variables: BTreeMap::new(),
            images: BTreeSet::new(),
            diagnostics: Vec::new(),
        }
    }

    pub(crate) fn report(
        &mut self,
        problem: Problem,
        span: Range<usize>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Diagnostic {
            problem,
            span: Some(span),
            expected: expected.into(),
            help: help.into(),
        });
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        // A service is resolved once for each environment, and is wrong in all of them at one place.
        if !self.diagnostics.contains(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    pub(crate) fn wrong_type(
        &mut self,
        what: &str,
        found: &Value,
        span: Range<usize>,
        expected: &str,
    ) {
        let help = match (found, expected) {
            (Value::Number(number), "a string") => format!("write \"{number}\""),
            (Value::Bool(truth), "a string") => format!("write \"{truth}\""),
            (Value::String(text), "a number") if text.parse::<f64>().is_ok() => {
                format!("write {text}, without quotes")
            }
            (Value::String(text), "a list of strings") => format!("write [\"{text}\"]"),
            (Value::String(text), "true or false") if text == "true" || text == "false" => {
                format!("write {text}, without quotes")
            }
            (Value::String(text), "an image") => format!("write image.{text}, without quotes"),
            _ => format!("give it {expected}"),
        };
        let problem = Problem::WrongType {
            what: what.to_owned(),
            found: found.kind(),
        };
        self.report(problem, span, format!("expected {expected}"), help);
    }

    pub(crate) fn bad_value(
        &mut self,
        what: &str,
        found: impl Into<String>,
        span: Range<usize>,
        expected: &str,
        help: impl Into<String>,
    ) {
        let problem = Problem::BadValue {
            what: what.to_owned(),
            found: found.into(),
        };
        self.report(problem, span, format!("expected {expected}"), help);
    }

    /// What was found, in the order of the text; what has no place comes first.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by(|a, b| {
            let place = |d: &Diagnostic| d.span.as_ref().map(|span| (span.start, span.end));
            place(a)
                .cmp(&place(b))
                .then_with(|| a.problem.cmp(&b.problem))
        });
        self.diagnostics
    }
}
