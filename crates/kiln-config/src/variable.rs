//! `variable "name" { type default description }` and the values that come from outside.

use std::collections::BTreeMap;

use hcl_edit::expr::Expression;
use hcl_edit::{Span, structure::Body};

use crate::reader::Reader;
use crate::section::{Labelled, Section, Shape};
use crate::value::{At, Value};
use crate::{Diagnostic, Problem, suggest};

/// A value from outside, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableValue {
    pub text: String,
    pub origin: VariableOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableOrigin {
    /// `--var name=value`: naming a variable that is not defined is an error.
    Argument,
    /// `KILN_VAR_name`: another definition's is none of our business, and only warned about.
    Environment,
}

#[derive(Clone, Copy)]
enum Type {
    String,
    Number,
    Bool,
}

impl Type {
    fn expected(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "true or false",
        }
    }

    fn accepts(self, value: &Value) -> bool {
        matches!(
            (self, value),
            (Self::String, Value::String(_))
                | (Self::Number, Value::Number(_))
                | (Self::Bool, Value::Bool(_))
        )
    }

    fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::String => Some(Value::String(text.to_owned())),
            Self::Number => text
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite())
                .map(Value::Number),
            Self::Bool => text.parse().ok().map(Value::Bool),
        }
    }
}

const SHAPE: Shape = Shape {
    attributes: &["type", "default", "description"],
    blocks: &[],
    later: &[
        ("sensitive", "pass secrets another way for now"),
        ("validation", "leave it out for now"),
    ],
};

/// Fills `reader.variables`. The blocks were not checked by a section yet: variables come first, because every
/// other attribute may name one.
pub(crate) fn read_all(
    reader: &mut Reader<'_>,
    file: &Body,
    given: &BTreeMap<String, VariableValue>,
    warnings: &mut Vec<String>,
) {
    for block in file.get_blocks("variable") {
        let [label] = block.labels.as_slice() else {
            continue;
        };
        let ident = block.ident.span().unwrap_or_default();
        let span = label.span().unwrap_or_default();
        let labelled = Labelled {
            block,
            header: ident.start..span.end,
            label: At {
                value: label.as_str().to_owned(),
                span,
            },
        };
        let name = labelled.label.value.clone();
        let value = read(reader, &labelled, given.get(&name));
        reader.variables.entry(name).or_insert(value);
    }
    for (name, value) in given {
        if reader.variables.contains_key(name) {
            continue;
        }
        match value.origin {
            VariableOrigin::Environment => {
                warnings.push(format!(
                    "KILN_VAR_{name} is set, and the definition has no variable `{name}`"
                ));
            }
            VariableOrigin::Argument => {
                let known = reader.variables.keys().map(String::as_str);
                let help = match suggest::nearest(name, known) {
                    Some(right) => format!("write `--var {right}={}`", value.text),
                    None => format!("define it: variable \"{name}\" {{ type = \"string\" }}"),
                };
                reader.push(Diagnostic {
                    problem: Problem::UnknownReference {
                        kind: "variable",
                        name: name.clone(),
                    },
                    span: None,
                    expected: "`--var` names a variable of the definition".to_owned(),
                    help,
                });
            }
        }
    }
}

fn read(
    reader: &mut Reader<'_>,
    labelled: &Labelled<'_>,
    given: Option<&VariableValue>,
) -> Option<Value> {
    let name = &labelled.label.value;
    let place = format!("`variable \"{name}\"`");
    // `type = string`, as Terraform has it, is no expression of ours: it is looked at before evaluation.
    let bare = labelled
        .block
        .body
        .get_attribute("type")
        .and_then(|attribute| match &attribute.value {
            Expression::Variable(word) => Some(At {
                value: word.as_str().to_owned(),
                span: word.span().unwrap_or_default(),
            }),
            _ => None,
        });
    let body;
    let section = if bare.is_some() {
        body = labelled
            .block
            .body
            .iter()
            .filter(|structure| {
                structure
                    .as_attribute()
                    .is_none_or(|a| a.key.as_str() != "type")
            })
            .cloned()
            .collect::<Body>();
        Section::read(reader, &SHAPE, &body, place, labelled.header.clone())
    } else {
        Section::read(
            reader,
            &SHAPE,
            &labelled.block.body,
            place,
            labelled.header.clone(),
        )
    };
    section.string(reader, "description");
    let written = bare.or_else(|| section.string(reader, "type"));
    let default = section.value("default");
    let kind = match &written {
        Some(at) => match at.value.as_str() {
            "string" => Type::String,
            "number" => Type::Number,
            "bool" => Type::Bool,
            other => {
                let near = match other {
                    "int" | "integer" | "float" => "number",
                    _ => suggest::nearest(other, ["string", "number", "bool"]).unwrap_or("string"),
                };
                let help = format!("write \"{near}\"");
                reader.bad_value(
                    &section.what("type"),
                    format!("`{other}`"),
                    at.span.clone(),
                    "\"string\", \"number\" or \"bool\"",
                    help,
                );
                return None;
            }
        },
        None => match default.as_ref().map(|at| &at.value) {
            Some(Value::Number(_)) => Type::Number,
            Some(Value::Bool(_)) => Type::Bool,
            _ => Type::String,
        },
    };
    if let Some(at) = &default
        && !kind.accepts(&at.value)
    {
        reader.wrong_type(
            &section.what("default"),
            &at.value,
            at.span.clone(),
            kind.expected(),
        );
        return None;
    }
    match (given, default) {
        (Some(VariableValue { text, origin }), _) => {
            let value = kind.parse(text);
            if value.is_none() {
                let from = match origin {
                    VariableOrigin::Argument => format!("`--var {name}`"),
                    VariableOrigin::Environment => format!("`KILN_VAR_{name}`"),
                };
                reader.bad_value(
                    &from,
                    format!("`{text}`"),
                    labelled.header.clone(),
                    kind.expected(),
                    format!("give the variable {}", kind.expected()),
                );
            }
            value
        }
        (None, Some(default)) => Some(default.value),
        // A default that is wrong has been reported.
        (None, None) if section.has("default") => None,
        (None, None) => {
            reader.report(
                Problem::NoValue { name: name.clone() },
                labelled.header.clone(),
                "it has no default, so it has to be given",
                format!("add `--var {name}=VALUE`, set KILN_VAR_{name}, or give it a `default`"),
            );
            None
        }
    }
}
