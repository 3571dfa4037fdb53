//! Type constraints of variables, as Terraform writes them: `list(string)`, `object({ port = optional(number, 80) })`.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, ObjectKey};

use crate::expression::evaluate;
use crate::reader::{Reader, at};
use crate::value::{At, Entry, Value};
use crate::{Problem, suggest};

#[derive(Clone, Debug)]
pub(crate) enum Type {
    Any,
    String,
    Number,
    Bool,
    List(Box<Type>),
    /// A list in which each item is there once, in order.
    Set(Box<Type>),
    Map(Box<Type>),
    Tuple(Vec<Type>),
    Object(BTreeMap<String, Field>),
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    kind: Type,
    /// What it is when it is not given; `None`: it has to be given.
    missing: Option<Value>,
}

const WORDS: [&str; 8] = [
    "string", "number", "bool", "any", "list", "set", "map", "object",
];
const ALL: &str = "`string`, `number`, `bool`, `any`, `list(…)`, `set(…)`, `map(…)`, `tuple([…])` or `object({…})`";

impl Type {
    /// `what`: as in "`type` of `variable "x"`".
    pub(crate) fn read(
        reader: &mut Reader<'_>,
        what: &str,
        expression: &Expression,
    ) -> Option<Self> {
        let span = expression.span().unwrap_or_default();
        match expression {
            Expression::Variable(word) => Self::word(reader, what, word.as_str(), span),
            Expression::String(word) => Self::word(reader, what, word.as_str(), span),
            Expression::Parenthesis(inner) => Self::read(reader, what, inner.inner()),
            Expression::FuncCall(call) => {
                let name = call.name.name.as_str();
                let arguments: Vec<&Expression> = call.args.iter().collect();
                match (name, arguments.as_slice()) {
                    ("list", [inner]) => {
                        Self::read(reader, what, inner).map(|kind| Self::List(Box::new(kind)))
                    }
                    ("set", [inner]) => {
                        Self::read(reader, what, inner).map(|kind| Self::Set(Box::new(kind)))
                    }
                    ("map", [inner]) => {
                        Self::read(reader, what, inner).map(|kind| Self::Map(Box::new(kind)))
                    }
                    ("tuple", [Expression::Array(items)]) => {
                        let kinds: Vec<_> = items
                            .iter()
                            .map(|item| Self::read(reader, what, item))
                            .collect();
                        Some(Self::Tuple(kinds.into_iter().collect::<Option<_>>()?))
                    }
                    ("object", [Expression::Object(fields)]) => Self::object(reader, what, fields),
                    _ => {
                        let near = suggest::nearest(name, WORDS.into_iter().chain(["tuple"]));
                        let help = match (name, near) {
                            ("optional", _) => {
                                "`optional` is for an attribute of an `object({…})`".to_owned()
                            }
                            ("object", _) => "write `object({ name = string })`".to_owned(),
                            ("tuple", _) => "write `tuple([string, number])`".to_owned(),
                            (_, Some(right)) => format!("write `{right}(string)`"),
                            (_, None) => "write `list(string)`".to_owned(),
                        };
                        reader.bad_value(what, format!("`{name}(…)`"), span, ALL, help);
                        None
                    }
                }
            }
            other => {
                let found = match other {
                    Expression::Array(_) => "a list",
                    Expression::Object(_) => "a map",
                    _ => "an expression",
                };
                reader.bad_value(what, found, span, ALL, "write `list(string)`");
                None
            }
        }
    }

    fn word(reader: &mut Reader<'_>, what: &str, word: &str, span: Range<usize>) -> Option<Self> {
        Some(match word {
            "string" => Self::String,
            "number" => Self::Number,
            "bool" => Self::Bool,
            "any" => Self::Any,
            // What Terraform once allowed, and people still write.
            "list" => Self::List(Box::new(Self::Any)),
            "set" => Self::Set(Box::new(Self::Any)),
            "map" => Self::Map(Box::new(Self::Any)),
            other => {
                let near = match other {
                    "int" | "integer" | "float" => "number",
                    "boolean" => "bool",
                    _ => suggest::nearest(other, WORDS).unwrap_or("string"),
                };
                let help = match near {
                    "list" | "set" | "map" => format!("write `{near}(string)`"),
                    "object" => "write `object({ name = string })`".to_owned(),
                    near => format!("write `{near}`"),
                };
                reader.bad_value(what, format!("`{other}`"), span, ALL, help);
                return None;
            }
        })
    }

    fn object(
        reader: &mut Reader<'_>,
        what: &str,
        fields: &hcl_edit::expr::Object,
    ) -> Option<Self> {
        let mut known = BTreeMap::new();
        for (key, value) in fields.iter() {
            let name = match key {
                ObjectKey::Ident(name) => name.as_str().to_owned(),
                ObjectKey::Expression(Expression::String(name)) => name.as_str().to_owned(),
                ObjectKey::Expression(other) => {
                    let span = other.span().unwrap_or_default();
                    reader.bad_value(
                        what,
                        "an attribute that is no name",
                        span,
                        "a name",
                        "write a name",
                    );
                    return None;
                }
            };
            let expression = value.expr();
            let arguments: Vec<&Expression> = match expression {
                Expression::FuncCall(call) if call.name.name.as_str() == "optional" => {
                    call.args.iter().collect()
                }
                _ => Vec::new(),
            };
            let (kind, missing) = match arguments.as_slice() {
                [kind] => (Self::read(reader, what, kind)?, Some(Value::Null)),
                [kind, default] => {
                    let kind = Self::read(reader, what, kind)?;
                    let default = evaluate(reader, default)?;
                    let what = format!("the default of `{name}` in {what}");
                    let default = kind.conform(reader, &what, default)?;
                    (kind, Some(default.value))
                }
                _ => (Self::read(reader, what, expression)?, None),
            };
            known.insert(name, Field { kind, missing });
        }
        Some(Self::Object(known))
    }

    /// As in "expected a string".
    pub(crate) fn expected(&self) -> &'static str {
        match self {
            Self::Any => "a value",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "true or false",
            Self::List(_) => "a list",
            Self::Set(_) => "a list in which each item is there once",
            Self::Map(_) => "a map",
            Self::Tuple(_) => "a list of a fixed length",
            Self::Object(_) => "an object",
        }
    }

    /// Whether a value from outside is taken as it is, or as an expression.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::String | Self::Number | Self::Bool)
    }

    /// The type of a variable that names none.
    pub(crate) fn of(default: Option<&Value>) -> Self {
        match default {
            Some(Value::Number(_)) => Self::Number,
            Some(Value::Bool(_)) => Self::Bool,
            Some(Value::List(_)) => Self::List(Box::new(Self::Any)),
            Some(Value::Map(_)) => Self::Map(Box::new(Self::Any)),
            Some(Value::String(_) | Value::Null | Value::Image(_)) | None => Self::String,
        }
    }

    /// The value as one of this type: with the defaults of what is left out. Nothing is converted, as nowhere else
    /// in a definition.
    pub(crate) fn conform(
        &self,
        reader: &mut Reader<'_>,
        what: &str,
        found: At<Value>,
    ) -> Option<At<Value>> {
        let At { value, span } = found;
        let value = match (self, value) {
            (_, Value::Null) => Value::Null,
            (
                Self::Any,
                value @ (Value::String(_)
                | Value::Number(_)
                | Value::Bool(_)
                | Value::List(_)
                | Value::Map(_)),
            )
            | (Self::String, value @ Value::String(_))
            | (Self::Number, value @ Value::Number(_))
            | (Self::Bool, value @ Value::Bool(_)) => value,
            (Self::List(kind), Value::List(items)) => Value::List(each(reader, kind, what, items)?),
            (Self::Set(kind), Value::List(items)) => {
                Value::List(unique(each(reader, kind, what, items)?))
            }
            (Self::Map(kind), Value::Map(entries)) => {
                let mut made = BTreeMap::new();
                let mut whole = true;
                for (name, Entry { key, item }) in entries {
                    let what = format!("`{name}` in {what}");
                    match kind.conform(reader, &what, item) {
                        Some(item) => {
                            made.insert(name, Entry { key, item });
                        }
                        None => whole = false,
                    }
                }
                whole.then_some(Value::Map(made))?
            }
            (Self::Tuple(kinds), Value::List(items)) => {
                if kinds.len() != items.len() {
                    let found = format!("{} items", items.len());
                    let expected = format!("{} items", kinds.len());
                    reader.bad_value(
                        what,
                        found,
                        span,
                        &expected,
                        "write as many as the type has",
                    );
                    return None;
                }
                let mut made = Vec::new();
                for (kind, item) in kinds.iter().zip(items) {
                    made.push(kind.conform(reader, &format!("an item of {what}"), item)?);
                }
                Value::List(made)
            }
            (Self::Object(fields), Value::Map(entries)) => {
                object_value(reader, fields, what, entries, &span)?
            }
            (_, value) => {
                reader.wrong_type(what, &value, span, self.expected());
                return None;
            }
        };
        Some(at(value, span))
    }
}

fn each(
    reader: &mut Reader<'_>,
    kind: &Type,
    what: &str,
    items: Vec<At<Value>>,
) -> Option<Vec<At<Value>>> {
    let what = format!("an item of {what}");
    let made: Vec<_> = items
        .into_iter()
        .map(|item| kind.conform(reader, &what, item))
        .collect();
    made.into_iter().collect()
}

fn object_value(
    reader: &mut Reader<'_>,
    fields: &BTreeMap<String, Field>,
    what: &str,
    mut entries: BTreeMap<String, Entry>,
    span: &Range<usize>,
) -> Option<Value> {
    let mut made = BTreeMap::new();
    let mut whole = true;
    for (name, field) in fields {
        let written = entries.remove(name);
        let entry = match (written, &field.missing) {
            // As in Terraform, null is what is not given.
            (Some(entry), Some(missing)) if entry.item.value == Value::Null => Entry {
                item: at(missing.clone(), span.clone()),
                ..entry
            },
            (Some(entry), _) => entry,
            (None, Some(missing)) => Entry {
                key: span.clone(),
                item: at(missing.clone(), span.clone()),
            },
            (None, None) => {
                reader.report(
                    Problem::Missing {
                        place: what.to_owned(),
                        name: name.clone(),
                    },
                    span.clone(),
                    format!("expected {} for `{name}`", field.kind.expected()),
                    format!("add `{name}`, or make it `optional(…)` in the type"),
                );
                whole = false;
                continue;
            }
        };
        match field
            .kind
            .conform(reader, &format!("`{name}` in {what}"), entry.item)
        {
            Some(item) => {
                let key = entry.key;
                made.insert(name.clone(), Entry { key, item });
            }
            None => whole = false,
        }
    }
    for (name, entry) in entries {
        let help = match suggest::nearest(&name, fields.keys().map(String::as_str)) {
            Some(right) => format!("write `{right}`"),
            None => "remove it, or add it to the type".to_owned(),
        };
        reader.report(
            Problem::UnknownAttribute {
                place: what.to_owned(),
                name,
            },
            entry.key,
            "an attribute of the type",
            help,
        );
        whole = false;
    }
    whole.then_some(Value::Map(made))
}

/// Each once, in order: what a set is here.
pub(crate) fn unique(items: Vec<At<Value>>) -> Vec<At<Value>> {
    let mut made: Vec<At<Value>> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for item in items {
        if seen.insert(rank(&item.value)) {
            made.push(item);
        }
    }
    made.sort_by_cached_key(|item| rank(&item.value));
    made
}

/// An order of values, and equal for values that are the same: numbers by size, then texts by their characters.
fn rank(value: &Value) -> (u8, u64, String) {
    match value {
        Value::Null => (0, 0, String::new()),
        Value::Bool(truth) => (1, u64::from(*truth), String::new()),
        Value::Number(number) => {
            // The bits of a number that is not negative are in its order; those of others in the reverse.
            let number = if *number == 0.0 { 0.0 } else { *number };
            let bits = number.to_bits();
            let ordered = if number.is_sign_negative() {
                !bits
            } else {
                bits | 1 << 63
            };
            (2, ordered, String::new())
        }
        Value::String(text) => (3, 0, text.clone()),
        Value::Image(name) => (4, 0, name.clone()),
        Value::List(_) | Value::Map(_) => (5, 0, crate::functions::fingerprint(value)),
    }
}
