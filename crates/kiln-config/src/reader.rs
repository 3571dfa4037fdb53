//! What is known while a definition is read, and what was found wrong so far.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use hcl_edit::expr::Expression;

use crate::value::{At, Value, number_text};
use crate::variable::Declared;
use crate::{Diagnostic, Problem, Source, Sources};

/// What a definition may ask of the world around it. This crate itself touches nothing.
pub trait Outside {
    /// A file's contents, by its path relative to the definition's folder.
    ///
    /// # Errors
    ///
    /// Why it can't be read, as the end of a sentence.
    fn file(&self, path: &str) -> Result<Vec<u8>, String>;

    /// The files below a folder, by their paths relative to it, in order. `""`: the definition's folder.
    ///
    /// # Errors
    ///
    /// Why it can't be read, as the end of a sentence.
    fn files(&self, folder: &str) -> Result<Vec<String>, String>;

    /// A variable of the process's environment.
    fn variable(&self, name: &str) -> Option<String>;

    /// The date of the lock, in seconds since 1970; `None`: there is no lock yet.
    fn date(&self) -> Option<i64>;
}

/// Something that is evaluated when it is first asked for.
pub(crate) enum Slot<T> {
    Waiting(T),
    /// Being evaluated: asked for again, it depends on itself.
    Busy,
    Known(Known),
}

#[derive(Clone)]
pub(crate) struct Known {
    /// `None`: something is wrong with it, which is reported already.
    pub(crate) value: Option<Value>,
    pub(crate) taint: Option<String>,
}

/// How much may be evaluated, in [`Value::weight`]: a definition of a few lines must not fill the memory.
const BUDGET: usize = 8_000_000;
/// How deep evaluation may go. The parser's own bound is lower; references add up.
const DEPTH: usize = 200;

pub(crate) struct Reader<'a> {
    pub(crate) sources: Sources,
    pub(crate) outside: &'a dyn Outside,
    pub(crate) variables: BTreeMap<String, Slot<Declared<'a>>>,
    pub(crate) locals: BTreeMap<String, Slot<&'a Expression>>,
    /// `image.NAME`: an image, or a map of images by their keys. `None`: its `for_each` is wrong, which is reported.
    pub(crate) images: BTreeMap<String, Option<Value>>,
    /// Names that a `for`, a `for_each` or a template file gives, innermost last.
    pub(crate) scope: Vec<(String, Value)>,
    /// In a template file nothing but `scope` is there.
    pub(crate) isolated: bool,
    /// In the default of a variable, where `env` may be called.
    pub(crate) in_default: bool,
    /// Where the value that is being evaluated got something sensitive from.
    pub(crate) taint: Option<String>,
    /// The paths that were read.
    pub(crate) files: std::collections::BTreeSet<String>,
    /// Inside `try` or `can`: what is found is forgotten again.
    trying: usize,
    budget: usize,
    exhausted: bool,
    depth: usize,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(sources: Sources, outside: &'a dyn Outside) -> Self {
        Self {
            sources,
            outside,
            variables: BTreeMap::new(),
            locals: BTreeMap::new(),
            images: BTreeMap::new(),
            scope: Vec::new(),
            isolated: false,
            in_default: false,
            taint: None,
            files: std::collections::BTreeSet::new(),
            trying: 0,
            budget: BUDGET,
            exhausted: false,
            depth: 0,
            diagnostics: Vec::new(),
        }
    }

    /// Parses a text so that the places in what comes out count through all sources. The parser counts from the
    /// start of what it is given, so it is given as many blanks first.
    pub(crate) fn parse<T>(
        &mut self,
        source: Source,
        parser: impl FnOnce(&str) -> Result<T, hcl_edit::parser::Error>,
    ) -> Option<T> {
        let text = source.text.clone();
        let start = self.sources.add(source);
        let result = parser(&format!("{}{text}", " ".repeat(start)));
        result
            .map_err(|error| {
                let at = error.location().offset().clamp(start, start + text.len());
                let message = error.message();
                let expected = message
                    .split_once("; ")
                    .map_or(message, |(_, expected)| expected);
                self.report(
                    Problem::Syntax,
                    at..at + 1,
                    expected,
                    "mend what stands at the caret, or just before it",
                );
            })
            .ok()
    }

    /// Takes from what may be evaluated at all.
    pub(crate) fn spend(&mut self, weight: usize, span: &Range<usize>) -> Option<()> {
        match self.budget.checked_sub(weight) {
            Some(left) => {
                self.budget = left;
                Some(())
            }
            None => {
                // Said once: whatever comes now is too much as well.
                if !std::mem::replace(&mut self.exhausted, true) {
                    self.budget = 0;
                    self.report(
                        Problem::TooLarge {
                            what: "what the definition evaluates".to_owned(),
                        },
                        span.clone(),
                        "this goes past the limit",
                        "make lists and texts smaller, or write them to a file that an image copies",
                    );
                }
                None
            }
        }
    }

    /// Runs `inner` one level deeper.
    pub(crate) fn deeper<T>(
        &mut self,
        span: &Range<usize>,
        inner: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        if self.depth >= DEPTH {
            self.report(
                Problem::TooLarge {
                    what: "the depth of what is evaluated here".to_owned(),
                },
                span.clone(),
                "too many values inside or behind one another",
                "split it into several locals that do not name each other",
            );
            return None;
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Runs `inner` and forgets what it found wrong.
    pub(crate) fn attempt<T>(&mut self, inner: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (found, scope) = (self.diagnostics.len(), self.scope.len());
        self.trying += 1;
        let result = inner(self);
        self.trying -= 1;
        // Going past the budget is never forgotten.
        let mut later = self.diagnostics.split_off(found);
        later.retain(|d| matches!(d.problem, Problem::TooLarge { .. }));
        self.diagnostics.append(&mut later);
        self.scope.truncate(scope);
        result
    }

    /// Whether a failure may be remembered: one inside `try` has to be found again, to be reported.
    pub(crate) fn is_trying(&self) -> bool {
        self.trying > 0
    }

    /// Evaluates something that has a taint of its own, and gives both.
    pub(crate) fn apart<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Option<T>,
    ) -> (Option<T>, Option<String>) {
        let before = self.taint.take();
        let result = inner(self);
        let taint = std::mem::replace(&mut self.taint, before);
        (result, taint)
    }

    pub(crate) fn taint(&mut self, taint: Option<String>) {
        if self.taint.is_none() {
            self.taint = taint;
        }
    }

    /// Evaluates what must not hold anything sensitive.
    pub(crate) fn open<T>(
        &mut self,
        what: impl fmt::Display,
        span: Range<usize>,
        inner: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let (result, taint) = self.apart(inner);
        let Some(origin) = taint else { return result };
        // An evaluation that failed has said why, without what is sensitive.
        if result.is_some() {
            self.report(
                Problem::Sensitive {
                    what: what.to_string(),
                    origin,
                },
                span,
                "it would be readable for anyone here",
                "only `from` of a `secret` may hold it: leave `sensitive` out if it is none",
            );
        }
        None
    }

    pub(crate) fn report(
        &mut self,
        problem: Problem,
        span: Range<usize>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) {
        let mut diagnostic = Diagnostic {
            problem,
            span: Some(span),
            expected: expected.into(),
            help: help.into(),
        };
        if self.taint.is_some() {
            conceal(&mut diagnostic);
        }
        self.push(diagnostic);
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
            (Value::Number(number), "a string") => format!("write \"{}\"", number_text(*number)),
            (Value::Bool(truth), "a string") => format!("write \"{truth}\""),
            (Value::String(text), "a number") if text.parse::<f64>().is_ok() => {
                format!("write {text}, without quotes")
            }
            (Value::String(text), "a list of strings") => format!("write [\"{text}\"]"),
            (Value::String(text), "true or false") if text == "true" || text == "false" => {
                format!("write {text}, without quotes")
            }
            (Value::String(text), "an image") => format!("write image.{text}, without quotes"),
            (Value::Map(images), "an image")
                if images
                    .values()
                    .all(|entry| matches!(entry.item.value, Value::Image(_))) =>
            {
                match images.keys().next() {
                    Some(key) => format!("choose one of them: image.NAME[\"{key}\"]"),
                    None => "its `for_each` is empty: there is no image".to_owned(),
                }
            }
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

    pub(crate) fn has_errors(&self) -> bool {
        !self.diagnostics.is_empty()
    }

    /// What was found, in the order of the text; what has no place comes first.
    pub(crate) fn finish(mut self) -> (Sources, Vec<Diagnostic>) {
        self.diagnostics.sort_by(|a, b| {
            let place = |d: &Diagnostic| d.span.as_ref().map(|span| (span.start, span.end));
            place(a)
                .cmp(&place(b))
                .then_with(|| a.problem.cmp(&b.problem))
        });
        (self.sources, self.diagnostics)
    }
}

/// Takes out of a message what may be sensitive: the value itself, and advice that repeats it.
fn conceal(diagnostic: &mut Diagnostic) {
    const HIDDEN: &str = "a sensitive value";
    match &mut diagnostic.problem {
        Problem::BadValue { found, .. } => HIDDEN.clone_into(found),
        Problem::UnknownReference {
            kind: "key" | "item",
            name,
        }
        | Problem::Missing { name, .. }
        | Problem::UnknownAttribute { name, .. } => HIDDEN.clone_into(name),
        Problem::Duplicate { what }
        | Problem::Contradiction { what }
        | Problem::TooLarge { what } => HIDDEN.clone_into(what),
        Problem::File { path, why } => {
            HIDDEN.clone_into(path);
            "it is not shown why".clone_into(why);
        }
        Problem::Invalid { message, .. } => HIDDEN.clone_into(message),
        Problem::WrongType { .. } => {}
        // These name what is written, and nothing that it is worth.
        Problem::Syntax
        | Problem::UnknownBlock { .. }
        | Problem::UnknownReference { .. }
        | Problem::Unsupported { .. }
        | Problem::NoValue { .. }
        | Problem::Cycle { .. }
        | Problem::Sensitive { .. } => return,
    }
    "what is sensitive is not shown".clone_into(&mut diagnostic.help);
}

/// The value, its place and nothing else.
pub(crate) fn at(value: Value, span: Range<usize>) -> At<Value> {
    At { value, span }
}
