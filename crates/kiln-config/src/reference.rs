//! References: `var.name`, `local.name`, `image.name`, `each.key`, and the way into lists and maps.

use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, Traversal, TraversalOperator};

use crate::expression::{evaluate as expression_value, shown, whole};
use crate::reader::{Known, Reader, Slot, at};
use crate::value::{At, Value};
use crate::{Problem, suggest, variable};

/// What a reference may begin with.
pub(crate) const ROOTS: [&str; 5] = ["var", "local", "image", "each", "path"];

/// The value of a name that a `for`, a `for_each` or a template file gives.
pub(crate) fn in_scope(reader: &Reader<'_>, name: &str) -> Option<Value> {
    let scope = reader.scope.iter().rev();
    scope
        .into_iter()
        .find(|(in_scope, _)| in_scope == name)
        .map(|(_, value)| value.clone())
}

pub(crate) fn evaluate(
    reader: &mut Reader<'_>,
    traversal: &Traversal,
    span: Range<usize>,
) -> Option<At<Value>> {
    let operators: Vec<&TraversalOperator> =
        traversal.operators.iter().map(|op| op.value()).collect();
    let places: Vec<Range<usize>> = traversal
        .operators
        .iter()
        .map(|op| op.span().unwrap_or_else(|| span.clone()))
        .collect();
    let (value, used) = match &traversal.expr {
        Expression::Variable(name) => match in_scope(reader, name.as_str()) {
            Some(value) => (value, 0),
            None => {
                let first = operators.first().copied();
                (named(reader, name.as_str(), first, &span)?, 1)
            }
        },
        other => (expression_value(reader, other)?.value, 0),
    };
    reader.spend(value.weight(), &span)?;
    let steps: Vec<_> = operators.into_iter().zip(places).skip(used).collect();
    let value = walk(reader, value, &steps)?;
    Some(at(value, span))
}

/// The value of `root.name`.
fn named(
    reader: &mut Reader<'_>,
    root: &str,
    first: Option<&TraversalOperator>,
    span: &Range<usize>,
) -> Option<Value> {
    let name = match first {
        Some(TraversalOperator::GetAttr(name)) => name.as_str(),
        _ => {
            reader.report(
                Problem::UnknownReference {
                    kind: "value",
                    name: root.to_owned(),
                },
                span.clone(),
                "a value, or `var.NAME`, `local.NAME` or `image.NAME`",
                match suggest::nearest(
                    root,
                    reader.scope.iter().map(|(in_scope, _)| in_scope.as_str()),
                ) {
                    Some(right) => format!("write `{right}`"),
                    None if ROOTS.contains(&root) => format!("write `{root}.NAME`"),
                    None => format!("write `var.{root}` for a variable"),
                },
            );
            return None;
        }
    };
    if reader.isolated {
        reader.report(
            Problem::UnknownReference {
                kind: "value",
                name: format!("{root}.{name}"),
            },
            span.clone(),
            "a value that the template is given",
            "a template file sees only the values that `templatefile` gives it: add it there",
        );
        return None;
    }
    match root {
        "var" => {
            if !reader.variables.contains_key(name) {
                let nearest = suggest::nearest(name, reader.variables.keys().map(String::as_str));
                let help = match nearest {
                    Some(right) => format!("write `var.{right}`"),
                    None => format!("define it: variable \"{name}\" {{ type = string }}"),
                };
                return unknown(reader, "variable", name, span, "a defined variable", help);
            }
            variable_value(reader, name, span)
        }
        "local" => {
            if !reader.locals.contains_key(name) {
                let nearest = suggest::nearest(name, reader.locals.keys().map(String::as_str));
                let help = match nearest {
                    Some(right) => format!("write `local.{right}`"),
                    None => format!("define it: locals {{ {name} = … }}"),
                };
                return unknown(reader, "local", name, span, "a defined local", help);
            }
            local_value(reader, name, span)
        }
        "image" => {
            if let Some(value) = reader.images.get(name) {
                return value.clone();
            }
            let nearest = suggest::nearest(name, reader.images.keys().map(String::as_str));
            let help = match nearest {
                Some(right) => format!("write `image.{right}`"),
                None => format!("define it: image \"{name}\" {{ … }}"),
            };
            unknown(reader, "image", name, span, "a defined image", help)
        }
        "each" => {
            reader.report(
                Problem::UnknownReference {
                    kind: "reference",
                    name: format!("each.{name}"),
                },
                span.clone(),
                "`each` is there in a block with `for_each`",
                "add `for_each` to the image or the service, or write the value itself",
            );
            None
        }
        // Files are named from the definition's folder, whatever it is called on this machine.
        "path" if ["module", "root"].contains(&name) => Some(Value::text_of(".")),
        "path" => {
            let help = match suggest::nearest(name, ["module", "root"]) {
                Some(right) => format!("write `path.{right}`"),
                None => "write `path.module`, the definition's folder: an image must not depend on where it is baked"
                    .to_owned(),
            };
            unknown(
                reader,
                "path",
                name,
                span,
                "`path.module` or `path.root`",
                help,
            )
        }
        _ => {
            let in_scope = reader.scope.iter().map(|(in_scope, _)| in_scope.as_str());
            let help = match suggest::nearest(root, ROOTS.into_iter().chain(in_scope)) {
                Some(right) => format!("write `{right}.{name}`"),
                None => "quote it if it is a text".to_owned(),
            };
            let name = format!("{root}.{name}");
            let expected = "`var.NAME`, `local.NAME` or `image.NAME`";
            unknown(reader, "reference", &name, span, expected, help)
        }
    }
}

fn unknown<T>(
    reader: &mut Reader<'_>,
    kind: &'static str,
    name: &str,
    span: &Range<usize>,
    expected: &str,
    help: impl Into<String>,
) -> Option<T> {
    reader.report(
        Problem::UnknownReference {
            kind,
            name: name.to_owned(),
        },
        span.clone(),
        expected,
        help,
    );
    None
}

/// A variable's value, evaluated when it is first asked for. `span`: of who asks.
pub(crate) fn variable_value(
    reader: &mut Reader<'_>,
    name: &str,
    span: &Range<usize>,
) -> Option<Value> {
    match std::mem::replace(reader.variables.get_mut(name)?, Slot::Busy) {
        Slot::Waiting(declared) => {
            let evaluated = aside(reader, true, |reader| variable::resolve(reader, &declared));
            let slot = if evaluated.value.is_none() && reader.is_trying() {
                Slot::Waiting(declared)
            } else {
                Slot::Known(evaluated.clone())
            };
            reader.variables.insert(name.to_owned(), slot);
            reader.taint(evaluated.taint);
            evaluated.value
        }
        Slot::Busy => cycle(reader, format!("the variable `{name}`"), span),
        Slot::Known(evaluated) => {
            let slot = Slot::Known(evaluated.clone());
            reader.variables.insert(name.to_owned(), slot);
            reader.taint(evaluated.taint);
            evaluated.value
        }
    }
}

/// A local's value, evaluated when it is first asked for. `span`: of who asks.
pub(crate) fn local_value(
    reader: &mut Reader<'_>,
    name: &str,
    span: &Range<usize>,
) -> Option<Value> {
    match std::mem::replace(reader.locals.get_mut(name)?, Slot::Busy) {
        Slot::Waiting(expression) => {
            let evaluated = aside(reader, false, |reader| {
                expression_value(reader, expression).map(|found| found.value)
            });
            let slot = if evaluated.value.is_none() && reader.is_trying() {
                Slot::Waiting(expression)
            } else {
                Slot::Known(evaluated.clone())
            };
            reader.locals.insert(name.to_owned(), slot);
            reader.taint(evaluated.taint);
            evaluated.value
        }
        Slot::Busy => cycle(reader, format!("the local `{name}`"), span),
        Slot::Known(evaluated) => {
            let slot = Slot::Known(evaluated.clone());
            reader.locals.insert(name.to_owned(), slot);
            reader.taint(evaluated.taint);
            evaluated.value
        }
    }
}

/// Evaluates what stands elsewhere: without the names and the taint of the one who asks for it.
fn aside(
    reader: &mut Reader<'_>,
    in_default: bool,
    inner: impl FnOnce(&mut Reader<'_>) -> Option<Value>,
) -> Known {
    let scope = std::mem::take(&mut reader.scope);
    let isolated = std::mem::take(&mut reader.isolated);
    let in_default = std::mem::replace(&mut reader.in_default, in_default);
    let (value, taint) = reader.apart(inner);
    reader.scope = scope;
    reader.isolated = isolated;
    reader.in_default = in_default;
    Known { value, taint }
}

fn cycle(reader: &mut Reader<'_>, what: String, span: &Range<usize>) -> Option<Value> {
    reader.report(
        Problem::Cycle { what },
        span.clone(),
        "here it is asked for again",
        "write one of the values in the circle without the others",
    );
    None
}

type Step<'s> = (&'s TraversalOperator, Range<usize>);

fn walk(reader: &mut Reader<'_>, mut value: Value, steps: &[Step<'_>]) -> Option<Value> {
    for (index, (operator, place)) in steps.iter().enumerate() {
        value = match operator {
            TraversalOperator::GetAttr(name) => attribute(reader, value, name.as_str(), place)?,
            TraversalOperator::Index(expression) => {
                let key = expression_value(reader, expression)?;
                item(reader, value, key)?
            }
            TraversalOperator::LegacyIndex(number) => {
                let key = at(Value::Number(*number.value() as f64), place.clone());
                item(reader, value, key)?
            }
            TraversalOperator::FullSplat(_) => {
                return splat(reader, value, &steps[index + 1..], place);
            }
            TraversalOperator::AttrSplat(_) => {
                // Only names go through it; an index behind them is one into the list that comes out.
                let rest = &steps[index + 1..];
                let names = rest
                    .iter()
                    .take_while(|(step, _)| matches!(step, TraversalOperator::GetAttr(_)))
                    .count();
                let made = splat(reader, value, &rest[..names], place)?;
                return walk(reader, made, &rest[names..]);
            }
        };
    }
    Some(value)
}

/// Terraform's rule: null has no items, and what is no list is a list of one.
fn splat(
    reader: &mut Reader<'_>,
    value: Value,
    steps: &[Step<'_>],
    place: &Range<usize>,
) -> Option<Value> {
    let items = match value {
        Value::List(items) => items,
        Value::Null => Vec::new(),
        other => vec![at(other, place.clone())],
    };
    let mut made = Vec::new();
    for item in items {
        let value = walk(reader, item.value, steps)?;
        made.push(at(value, item.span));
    }
    Some(Value::List(made))
}

fn attribute(
    reader: &mut Reader<'_>,
    value: Value,
    name: &str,
    place: &Range<usize>,
) -> Option<Value> {
    let Value::Map(mut entries) = value else {
        let help = match &value {
            Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
                format!(
                    "write `[*].{name}` for that of each item, or `[0].{name}` for that of the first"
                )
            }
            _ => format!("remove `.{name}`"),
        };
        reader.report(
            Problem::WrongType {
                what: format!("what `.{name}` is asked of"),
                found: value.kind(),
            },
            place.clone(),
            "expected a map",
            help,
        );
        return None;
    };
    if let Some(entry) = entries.remove(name) {
        return Some(entry.item.value);
    }
    missing(reader, name, &entries, place)
}

fn missing<T>(
    reader: &mut Reader<'_>,
    name: &str,
    entries: &std::collections::BTreeMap<String, crate::value::Entry>,
    place: &Range<usize>,
) -> Option<T> {
    let help = match suggest::nearest(name, entries.keys().map(String::as_str)) {
        Some(right) => format!("write `{right}`"),
        None if entries.is_empty() => "the map is empty".to_owned(),
        None => {
            let names: Vec<String> = entries
                .keys()
                .take(10)
                .map(|key| format!("`{key}`"))
                .collect();
            format!("it has {}", names.join(", "))
        }
    };
    unknown(reader, "key", name, place, "a key of the map", help)
}

fn item(reader: &mut Reader<'_>, value: Value, key: At<Value>) -> Option<Value> {
    match value {
        Value::List(mut items) => {
            let Some(number) = key.value.number() else {
                reader.wrong_type("an index into a list", &key.value, key.span, "a number");
                return None;
            };
            match whole(number).and_then(|index| usize::try_from(index).ok()) {
                Some(index) if index < items.len() => Some(items.swap_remove(index).value),
                _ => {
                    let help = match items.len() {
                        0 => "the list is empty".to_owned(),
                        1 => "the list has one item: write [0]".to_owned(),
                        count => format!(
                            "it has {count} items: write a number from 0 to {}",
                            count - 1
                        ),
                    };
                    let name = shown(number);
                    unknown(
                        reader,
                        "item",
                        &name,
                        &key.span,
                        "an index of the list",
                        help,
                    )
                }
            }
        }
        Value::Map(mut entries) => {
            let Some(name) = key.value.text() else {
                reader.wrong_type("a key of a map", &key.value, key.span, "a string");
                return None;
            };
            match entries.remove(&name) {
                Some(entry) => Some(entry.item.value),
                None => missing(reader, &name, &entries, &key.span),
            }
        }
        other => {
            reader.wrong_type(
                "what an item is asked of",
                &other,
                key.span,
                "a list or a map",
            );
            None
        }
    }
}
