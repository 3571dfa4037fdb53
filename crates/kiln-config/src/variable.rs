//! `variable "name" { … }`, `locals { … }`, and the values that come from outside.

use std::collections::BTreeMap;

use hcl_edit::expr::Expression;
use hcl_edit::structure::{Block, Body};
use hcl_edit::{Span, structure::Structure};

use crate::expression::{evaluate, truth};
use crate::reader::{Reader, Slot};
use crate::reference;
use crate::section::{BlockShape, Labelled, Section, Shape};
use crate::types::Type;
use crate::value::{At, Value};
use crate::{Diagnostic, Problem, Source, suggest};

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

impl VariableOrigin {
    fn shown(self, name: &str) -> String {
        match self {
            Self::Argument => format!("`--var {name}`"),
            Self::Environment => format!("`KILN_VAR_{name}`"),
        }
    }
}

const SHAPE: Shape = Shape {
    attributes: &["type", "default", "description", "sensitive"],
    blocks: &[BlockShape {
        name: "validation",
        label: None,
    }],
    later: &[
        (
            "nullable",
            "check it with a `validation`: condition = var.NAME != null",
        ),
        ("ephemeral", "leave it out"),
    ],
};
const VALIDATION: Shape = Shape {
    attributes: &["condition", "error_message"],
    blocks: &[],
    later: &[],
};

/// A variable as it is written, before its value is asked for.
#[derive(Clone)]
pub(crate) struct Declared<'a> {
    name: String,
    header: std::ops::Range<usize>,
    /// `None`: not written. Wrong ones have been reported, and `broken` is set.
    kind: Option<Type>,
    broken: bool,
    default: Option<&'a Expression>,
    sensitive: bool,
    given: Option<VariableValue>,
}

#[derive(Clone)]
pub(crate) struct Validation<'a> {
    name: String,
    condition: &'a Expression,
    message: &'a Expression,
}

/// Fills `reader.variables` and `reader.locals`, which every other attribute may name. Gives what has to hold for them.
pub(crate) fn declare<'a>(
    reader: &mut Reader<'a>,
    file: &'a Body,
    given: &BTreeMap<String, VariableValue>,
    warnings: &mut Vec<String>,
) -> Vec<Validation<'a>> {
    let mut validations = Vec::new();
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
        let declared = read(reader, &labelled, given.get(&name), &mut validations);
        reader
            .variables
            .entry(name)
            .or_insert(Slot::Waiting(declared));
    }
    for block in file.get_blocks("locals") {
        locals(reader, block);
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
                    None => format!("define it: variable \"{name}\" {{ type = string }}"),
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
    validations
}

/// Asks for everything that was declared, for the sake of the errors in it.
pub(crate) fn check_all(reader: &mut Reader<'_>, validations: &[Validation<'_>]) {
    let names: Vec<String> = reader.variables.keys().cloned().collect();
    for name in names {
        let value = reference::variable_value(reader, &name, &(0..0));
        reader.taint = None;
        if value.is_some() {
            for validation in validations.iter().filter(|check| check.name == name) {
                validate(reader, validation);
            }
        }
    }
    let locals: Vec<(String, std::ops::Range<usize>)> = reader
        .locals
        .iter()
        .map(|(name, slot)| {
            let span = match slot {
                Slot::Waiting(expression) => expression.span(),
                Slot::Busy | Slot::Known(_) => None,
            };
            (name.clone(), span.unwrap_or_default())
        })
        .collect();
    for (name, span) in locals {
        let _ = reference::local_value(reader, &name, &span);
        reader.taint = None;
    }
}

fn locals<'a>(reader: &mut Reader<'a>, block: &'a Block) {
    for structure in &block.body {
        match structure {
            Structure::Attribute(attribute) => {
                let name = attribute.key.as_str();
                let span = attribute.key.span().unwrap_or_default();
                if reader.locals.contains_key(name) {
                    reader.report(
                        Problem::Duplicate {
                            what: format!("the local `{name}`"),
                        },
                        span,
                        "once",
                        "remove one of the two, or rename it",
                    );
                    continue;
                }
                let slot = Slot::Waiting(&attribute.value);
                reader.locals.insert(name.to_owned(), slot);
            }
            Structure::Block(inner) => {
                let name = inner.ident.as_str().to_owned();
                reader.report(
                    Problem::UnknownBlock {
                        place: "`locals`".to_owned(),
                        name: name.clone(),
                    },
                    inner.ident.span().unwrap_or_default(),
                    "expected `name = value`",
                    format!("write `{name} = {{ … }}` for a map"),
                );
            }
        }
    }
}

fn read<'a>(
    reader: &mut Reader<'a>,
    labelled: &Labelled<'a>,
    given: Option<&VariableValue>,
    validations: &mut Vec<Validation<'a>>,
) -> Declared<'a> {
    let name = labelled.label.value.clone();
    let place = format!("`variable \"{name}\"`");
    let section = Section::read_lazily(
        reader,
        &SHAPE,
        &labelled.block.body,
        place,
        labelled.header.clone(),
        &["type", "default"],
    );
    section.string(reader, "description");
    let sensitive = section.boolean(reader, "sensitive").unwrap_or(false);
    let what = section.what("type");
    let kind = section
        .expression("type")
        .map(|expression| Type::read(reader, &what, expression));
    let broken = matches!(kind, Some(None));
    for block in section.blocks("validation") {
        let section = Section::read_lazily(
            reader,
            &VALIDATION,
            &block.block.body,
            format!("`validation` of the variable `{name}`"),
            block.header.clone(),
            VALIDATION.attributes,
        );
        section.require(
            reader,
            "condition",
            &format!("condition = var.{name} != \"\""),
        );
        section.require(reader, "error_message", "error_message = \"What is wrong\"");
        if let (Some(condition), Some(message)) = (
            section.expression("condition"),
            section.expression("error_message"),
        ) {
            validations.push(Validation {
                name: name.clone(),
                condition,
                message,
            });
        }
    }
    Declared {
        name,
        header: labelled.header.clone(),
        kind: kind.flatten(),
        broken,
        default: section.expression("default"),
        sensitive,
        given: given.cloned(),
    }
}

/// The variable's value: from outside, else its default.
pub(crate) fn resolve(reader: &mut Reader<'_>, declared: &Declared<'_>) -> Option<Value> {
    let name = &declared.name;
    let origin = format!("the variable `{name}`");
    if declared.broken {
        return None;
    }
    if declared.sensitive {
        // From the start, so that no error shows it either.
        reader.taint(Some(origin));
    }
    let written = match declared.default {
        // A default that is wrong is so whatever is given.
        Some(expression) => Some(evaluate(reader, expression)?),
        None => None,
    };
    let kind = match &declared.kind {
        Some(kind) => kind.clone(),
        None => Type::of(written.as_ref().map(|at| &at.value)),
    };
    let default = match written {
        Some(found) => {
            let what = format!("`default` of `variable \"{name}\"`");
            Some(kind.conform(reader, &what, found)?)
        }
        None => None,
    };
    let Some(given) = &declared.given else {
        if default.is_none() {
            reader.report(
                Problem::NoValue { name: name.clone() },
                declared.header.clone(),
                "it has no default, so it has to be given",
                format!("add `--var {name}=VALUE`, set KILN_VAR_{name}, or give it a `default`"),
            );
        }
        return default.map(|at| at.value);
    };
    from_outside(reader, declared, &kind, given)
}

fn from_outside(
    reader: &mut Reader<'_>,
    declared: &Declared<'_>,
    kind: &Type,
    given: &VariableValue,
) -> Option<Value> {
    let name = &declared.name;
    let from = given.origin.shown(name);
    if kind.is_plain() {
        let text = Value::String(given.text.clone());
        let value = match kind {
            Type::Number => text.number().map(Value::Number),
            Type::Bool => text.truth().map(Value::Bool),
            _ => Some(text),
        };
        if value.is_none() {
            let expected = kind.expected();
            let help = format!("give the variable {expected}");
            let found = format!("`{}`", given.text);
            reader.bad_value(&from, found, declared.header.clone(), expected, help);
        }
        return value;
    }
    // As an expression, which may name nothing. Its text is shown in errors, unless it is sensitive.
    let wrong = |reader: &mut Reader<'_>| {
        reader.bad_value(
            &from,
            "what is no such value",
            declared.header.clone(),
            kind.expected(),
            "write it as in a definition, such as --var 'names=[\"a\", \"b\"]'",
        );
    };
    let source = Source {
        name: from.trim_matches('`').to_owned(),
        text: format!("{name} = {}", given.text),
    };
    let read = |reader: &mut Reader<'_>| {
        let body = reader.parse(source, hcl_edit::parser::parse_body)?;
        let Some((Structure::Attribute(attribute), 1)) =
            body.iter().next().map(|first| (first, body.len()))
        else {
            return None;
        };
        let isolated = std::mem::replace(&mut reader.isolated, true);
        let found = evaluate(reader, &attribute.value);
        reader.isolated = isolated;
        kind.conform(reader, &from, found?)
    };
    let found = if declared.sensitive {
        reader.attempt(read)
    } else {
        read(reader)
    };
    if found.is_none() && (declared.sensitive || !reader.has_errors()) {
        wrong(reader);
    }
    found.map(|at| at.value)
}

fn validate(reader: &mut Reader<'_>, validation: &Validation<'_>) {
    let name = &validation.name;
    let what = format!("the condition of the variable `{name}`");
    let (holds, _) = reader.apart(|reader| truth(reader, &what, validation.condition));
    if holds != Some(false) {
        return;
    }
    let span = validation.condition.span().unwrap_or_default();
    let place = validation.message.span().unwrap_or_default();
    let what = format!("the error message of the variable `{name}`");
    let message = reader.open(&what, place, |reader| {
        let found = evaluate(reader, validation.message)?;
        match found.value.text() {
            Some(text) => Some(text),
            None => {
                reader.wrong_type(&what, &found.value, found.span, "a string");
                None
            }
        }
    });
    let Some(message) = message else { return };
    reader.report(
        Problem::Invalid {
            name: name.clone(),
            message: message.trim_end().to_owned(),
        },
        span,
        "this has to hold",
        format!("give another value: `--var {name}=VALUE`, KILN_VAR_{name}, or its `default`"),
    );
}
