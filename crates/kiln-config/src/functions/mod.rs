//! The functions of the language: those of Terraform and Packer that give the same result wherever they are called.

mod collection;
mod convert;
mod date;
mod encoding;
mod file;
mod format;
mod hash;
mod network;
mod number;
mod pattern;
mod text;
mod yaml;

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::expr::Expression;

use crate::expression::{evaluate, whole};
use crate::reader::Reader;
use crate::value::{At, Entry, Value};
use crate::{Problem, suggest};

pub(crate) use encoding::fingerprint;

/// What an argument has to be. A number or boolean is taken where a text is wanted and the other way round, as in
/// Terraform.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Null as well.
    Any,
    Text,
    Number,
    /// A number without decimals.
    Whole,
    List,
    /// A list of texts.
    Texts,
    Map,
    /// A list or a map.
    Collection,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Any => "a value",
            Self::Text => "a string",
            Self::Number => "a number",
            Self::Whole => "a whole number",
            Self::List => "a list",
            Self::Texts => "a list of strings",
            Self::Map => "a map",
            Self::Collection => "a list or a map",
        }
    }

    fn take(self, value: Value) -> Result<Value, Value> {
        let taken = match (self, &value) {
            (Self::Any, _)
            | (Self::List, Value::List(_))
            | (Self::Map, Value::Map(_))
            | (Self::Collection, Value::List(_) | Value::Map(_)) => return Ok(value),
            (Self::Text, _) => value.text().map(Value::String),
            (Self::Number, _) => value.number().map(Value::Number),
            (Self::Whole, _) => value
                .number()
                .filter(|number| whole(*number).is_some())
                .map(Value::Number),
            (Self::Texts, Value::List(items)) => items
                .iter()
                .map(|item| {
                    Some(At {
                        value: Value::String(item.value.text()?),
                        span: item.span.clone(),
                    })
                })
                .collect::<Option<_>>()
                .map(Value::List),
            (Self::List | Self::Map | Self::Collection | Self::Texts, _) => None,
        };
        taken.ok_or(value)
    }
}

struct Function {
    name: &'static str,
    /// Name and kind of each argument.
    parameters: &'static [(&'static str, Kind)],
    /// How many of them, from the end, may be left out.
    optional: usize,
    /// Of any number of arguments behind them.
    more: Option<(&'static str, Kind)>,
    run: fn(&mut Reader<'_>, &Arguments) -> Result<Value, Fault>,
}

const fn function(
    name: &'static str,
    parameters: &'static [(&'static str, Kind)],
    run: fn(&mut Reader<'_>, &Arguments) -> Result<Value, Fault>,
) -> Function {
    Function {
        name,
        parameters,
        optional: 0,
        more: None,
        run,
    }
}

impl Function {
    const fn optional(mut self, count: usize) -> Self {
        self.optional = count;
        self
    }

    const fn more(mut self, name: &'static str, kind: Kind) -> Self {
        self.more = Some((name, kind));
        self
    }

    /// As in `substr(text, offset, length)`.
    fn signature(&self) -> String {
        let least = self.parameters.len() - self.optional;
        let mut names: Vec<String> = self
            .parameters
            .iter()
            .enumerate()
            .map(|(index, (name, _))| {
                if index < least {
                    (*name).to_owned()
                } else {
                    format!("[{name}]")
                }
            })
            .collect();
        if let Some((name, _)) = self.more {
            names.push(format!("{name}…"));
        }
        format!("{}({})", self.name, names.join(", "))
    }
}

/// Checked: each is of its parameter's kind.
struct Arguments {
    values: Vec<At<Value>>,
    /// Of the whole call.
    span: Range<usize>,
}

impl Arguments {
    fn value(&self, index: usize) -> &Value {
        self.values.get(index).map_or(&Value::Null, |at| &at.value)
    }

    fn given(&self, index: usize) -> bool {
        index < self.values.len()
    }

    fn text(&self, index: usize) -> &str {
        match self.value(index) {
            Value::String(text) => text,
            _ => "",
        }
    }

    fn number(&self, index: usize) -> f64 {
        self.value(index).number().unwrap_or_default()
    }

    fn whole(&self, index: usize) -> i64 {
        whole(self.number(index)).unwrap_or_default()
    }

    fn list(&self, index: usize) -> &[At<Value>] {
        match self.value(index) {
            Value::List(items) => items,
            _ => &[],
        }
    }

    fn texts(&self, index: usize) -> Vec<&str> {
        let items = self.list(index).iter();
        items
            .filter_map(|item| match &item.value {
                Value::String(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// `None`: it is no map, or not given.
    fn map(&self, index: usize) -> Option<&BTreeMap<String, Entry>> {
        match self.value(index) {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// A list whose items have the place of the call.
    fn list_of(&self, items: impl IntoIterator<Item = Value>) -> Value {
        Value::list_at(items, &self.span)
    }

    fn list_of_texts<T: Into<String>>(&self, items: impl IntoIterator<Item = T>) -> Value {
        self.list_of(items.into_iter().map(Value::text_of))
    }

    fn map_of(&self, entries: impl IntoIterator<Item = (String, Value)>) -> Value {
        Value::map_at(entries, &self.span)
    }
}

/// What a function finds wrong.
enum Fault {
    /// With an argument's value: what is found, what is expected and what to do.
    Argument {
        index: usize,
        found: String,
        expected: String,
        help: String,
    },
    File {
        path: String,
        why: String,
    },
    /// Said already.
    Reported,
}

fn fault<T>(
    index: usize,
    found: impl Into<String>,
    expected: impl Into<String>,
    help: impl Into<String>,
) -> Result<T, Fault> {
    Err(Fault::Argument {
        index,
        found: found.into(),
        expected: expected.into(),
        help: help.into(),
    })
}

/// The largest text or list that a function makes, in bytes or items.
const LARGEST: usize = 16 << 20;

fn too_large<T>(index: usize) -> Result<T, Fault> {
    fault(
        index,
        "what makes the result too large",
        format!("a result of at most {LARGEST} bytes"),
        "make it smaller, or write it to a file that an image copies",
    )
}

const SECRETS: &str =
    "a bake asks no other service: use a variable, or a `secret` block for what is secret";

/// Functions that other languages of the kind have, and what to do without them.
const REFUSED: &[(&str, &str)] = &[
    (
        "abspath",
        "an image must not depend on where it is baked: name files from the definition's folder",
    ),
    (
        "base64gzip",
        "its result depends on the compressor: copy the file, and compress it in a `run` step",
    ),
    ("base64gunzip", "decompress the file in a `run` step"),
    (
        "bcrypt",
        "its result differs each time: give the hash with a variable",
    ),
    (
        "convert",
        "use `tostring`, `tonumber`, `tobool`, `tolist`, `toset` or `tomap`",
    ),
    (
        "isotime",
        "use `formatdate`, as in formatdate(\"YYYY-MM-DD\", timestamp())",
    ),
    (
        "legacy_isotime",
        "use `formatdate`, as in formatdate(\"YYYY-MM-DD\", timestamp())",
    ),
    (
        "strftime",
        "use `formatdate`, as in formatdate(\"YYYY-MM-DD\", timestamp())",
    ),
    (
        "legacy_strftime",
        "use `formatdate`, as in formatdate(\"YYYY-MM-DD\", timestamp())",
    ),
    ("list", "write a list: `[…]`"),
    ("map", "write a map: `{ … }`"),
    (
        "nonsensitive",
        "leave `sensitive` out of the variable if it is no secret",
    ),
    (
        "pathexpand",
        "an image must not depend on who bakes it: name files from the definition's folder",
    ),
    ("plantimestamp", "use `timestamp()`, the date of the lock"),
    ("rsadecrypt", "give the value with a variable"),
    (
        "uuid",
        "its result differs each time: use `uuidv5`, or give the value with a variable",
    ),
    (
        "uuidv4",
        "its result differs each time: use `uuidv5`, or give the value with a variable",
    ),
    ("vault", SECRETS),
    ("consul_key", SECRETS),
    ("aws_secretsmanager", SECRETS),
    ("aws_secretsmanager_raw", SECRETS),
    ("aws_parameterstore", SECRETS),
    ("terraform", "kiln has no workspaces: use a variable"),
    (
        "issensitive",
        "a definition knows which of its variables are",
    ),
    ("ephemeralasnull", "kiln has no ephemeral values"),
    (
        "textdecodebase64",
        "files are UTF-8: use `base64decode`, or `filebase64` for any file",
    ),
    ("textencodebase64", "texts are UTF-8: use `base64encode`"),
    (
        "type",
        "`kiln validate` says what type is expected and found",
    ),
];

fn all() -> impl Iterator<Item = &'static Function> {
    [
        collection::FUNCTIONS,
        convert::FUNCTIONS,
        date::FUNCTIONS,
        encoding::FUNCTIONS,
        file::FUNCTIONS,
        format::FUNCTIONS,
        hash::FUNCTIONS,
        network::FUNCTIONS,
        number::FUNCTIONS,
        text::FUNCTIONS,
        yaml::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
}

/// `name`: of the function, and its place. `span`: of the whole call.
pub(crate) fn call(
    reader: &mut Reader<'_>,
    name: &At<&str>,
    arguments: &[&Expression],
    expand: bool,
    span: &Range<usize>,
) -> Option<Value> {
    match name.value {
        "try" => return attempts(reader, arguments, span),
        "can" => {
            let [only] = arguments else {
                wrong_count(reader, "can", "can(expression)", span);
                return None;
            };
            return Some(Value::Bool(
                reader.attempt(|reader| evaluate(reader, only)).is_some(),
            ));
        }
        _ => {}
    }
    let Some(function) = all().find(|function| function.name == name.value) else {
        unknown(reader, name);
        return None;
    };
    let mut values = Vec::new();
    for (index, expression) in arguments.iter().enumerate() {
        let found = evaluate(reader, expression);
        let last = index + 1 == arguments.len();
        match found {
            Some(found) if expand && last => match found.value {
                Value::List(items) => values.extend(items.into_iter().map(|item| {
                    Some(At {
                        value: item.value,
                        span: found.span.clone(),
                    })
                })),
                other => {
                    let what = "what `...` makes arguments of";
                    reader.wrong_type(what, &other, found.span, "a list");
                    return None;
                }
            },
            found => values.push(found),
        }
    }
    let values: Vec<At<Value>> = values.into_iter().collect::<Option<_>>()?;
    let values = check(reader, function, values, span)?;
    let arguments = Arguments {
        values,
        span: span.clone(),
    };
    match (function.run)(reader, &arguments) {
        Ok(value) => Some(value),
        Err(Fault::Argument {
            index,
            found,
            expected,
            help,
        }) => {
            let place = arguments.values.get(index).map(|at| at.span.clone());
            let what = parameter(function, index);
            reader.bad_value(
                &what,
                found,
                place.unwrap_or_else(|| span.clone()),
                &expected,
                help,
            );
            None
        }
        Err(Fault::File { path, why }) => {
            let place = arguments.values.first().map(|at| at.span.clone());
            reader.report(
                Problem::File { path, why },
                place.unwrap_or_else(|| span.clone()),
                "a readable file in the definition's folder",
                "name it from the definition's folder",
            );
            None
        }
        Err(Fault::Reported) => None,
    }
}

/// As in "the argument `length` of `substr`".
fn parameter(function: &Function, index: usize) -> String {
    let name = match (function.parameters.get(index).copied(), function.more) {
        (Some((name, _)), _) | (None, Some((name, _))) => name,
        (None, None) => "?",
    };
    format!("the argument `{name}` of `{}`", function.name)
}

fn check(
    reader: &mut Reader<'_>,
    function: &Function,
    values: Vec<At<Value>>,
    span: &Range<usize>,
) -> Option<Vec<At<Value>>> {
    let most = function.parameters.len();
    if values.len() < most - function.optional {
        wrong_count(reader, function.name, &function.signature(), span);
        return None;
    }
    if values.len() > most && function.more.is_none() {
        let place = values.get(most).map(|at| at.span.clone());
        let place = place.unwrap_or_else(|| span.clone());
        wrong_count(reader, function.name, &function.signature(), &place);
        return None;
    }
    let mut taken = Vec::new();
    let mut right = true;
    for (index, At { value, span }) in values.into_iter().enumerate() {
        let kind = match (function.parameters.get(index).copied(), function.more) {
            (Some((_, kind)), _) | (None, Some((_, kind))) => kind,
            (None, None) => Kind::Any,
        };
        match kind.take(value) {
            Ok(value) => taken.push(At { value, span }),
            Err(found) => {
                right = false;
                let what = parameter(function, index);
                match (kind, &found) {
                    // The type is right, and the value is not.
                    (Kind::Whole, Value::Number(number)) => reader.bad_value(
                        &what,
                        crate::value::number_text(*number),
                        span,
                        kind.expected(),
                        "write a number without decimals: `floor(…)` cuts them off",
                    ),
                    _ => reader.wrong_type(&what, &found, span, kind.expected()),
                }
            }
        }
    }
    right.then_some(taken)
}

fn wrong_count(reader: &mut Reader<'_>, name: &str, signature: &str, span: &Range<usize>) {
    reader.report(
        Problem::Contradiction {
            what: format!("`{name}` is called with the wrong number of arguments"),
        },
        span.clone(),
        "expected other arguments",
        format!("write `{signature}`"),
    );
}

fn unknown(reader: &mut Reader<'_>, name: &At<&str>) {
    if let Some((_, help)) = REFUSED.iter().find(|(refused, _)| *refused == name.value) {
        let what = format!("the function `{}`", name.value);
        let problem = Problem::Unsupported { what };
        reader.report(problem, name.span.clone(), "not there", *help);
        return;
    }
    let known = all().map(|function| function.name).chain(["try", "can"]);
    let help = match suggest::nearest(name.value, known) {
        Some(right) => format!("write `{right}`"),
        None => "docs/definition.md lists the functions".to_owned(),
    };
    reader.report(
        Problem::UnknownReference {
            kind: "function",
            name: name.value.to_owned(),
        },
        name.span.clone(),
        "a function",
        help,
    );
}

/// The first argument that can be evaluated; when none can, what is wrong with the last.
fn attempts(
    reader: &mut Reader<'_>,
    arguments: &[&Expression],
    span: &Range<usize>,
) -> Option<Value> {
    let Some((last, others)) = arguments.split_last() else {
        wrong_count(reader, "try", "try(expression, fallback…)", span);
        return None;
    };
    for expression in others {
        if let Some(found) = reader.attempt(|reader| evaluate(reader, expression)) {
            return Some(found.value);
        }
    }
    let found = evaluate(reader, last)?;
    Some(found.value)
}
