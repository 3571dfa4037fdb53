//! Expressions → values. No functions and no operators: what they would do, a variable does.

use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, ObjectKey, Traversal, TraversalOperator};
use hcl_edit::template::{Element, Template};

use crate::reader::Reader;
use crate::{Problem, suggest};

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> At<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At {
            value: f(self.value),
            span: self.span,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    String(String),
    /// Whole numbers up to 2^53 are exact, and no attribute takes a larger one.
    Number(f64),
    Bool(bool),
    List(Vec<At<Value>>),
    Map(Vec<(At<String>, At<Value>)>),
    /// `image.NAME`
    Image(String),
}

impl Value {
    /// As in "is a string".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Image(_) => "an image",
        }
    }

    /// How a template shows it; lists, maps and images have no such form.
    fn text(&self) -> Option<String> {
        match self {
            Self::String(text) => Some(text.clone()),
            Self::Number(number) => Some(number.to_string()),
            Self::Bool(truth) => Some(truth.to_string()),
            Self::List(_) | Self::Map(_) | Self::Image(_) => None,
        }
    }
}

/// `None`: what is wrong has been reported.
pub(crate) fn evaluate(reader: &mut Reader<'_>, expression: &Expression) -> Option<At<Value>> {
    let span = expression.span().unwrap_or_default();
    let value = match expression {
        Expression::String(text) => Value::String(text.as_str().to_owned()),
        Expression::Bool(truth) => Value::Bool(*truth.value()),
        Expression::Number(number) => Value::Number(number.value().as_f64()?),
        Expression::Parenthesis(inner) => return evaluate(reader, inner.inner()),
        Expression::Array(array) => {
            // All of them, so that each reports what is wrong with it.
            let items: Vec<_> = array.iter().map(|item| evaluate(reader, item)).collect();
            Value::List(items.into_iter().collect::<Option<_>>()?)
        }
        Expression::Object(object) => {
            let mut entries: Vec<(At<String>, At<Value>)> = Vec::new();
            let mut whole = true;
            for (key, item) in object.iter() {
                let key = object_key(reader, key);
                let item = evaluate(reader, item.expr());
                match (key, item) {
                    (Some(key), Some(item)) => entries.push((key, item)),
                    _ => whole = false,
                }
            }
            if !whole {
                return None;
            }
            Value::Map(entries)
        }
        Expression::StringTemplate(template) => return template_value(reader, template, span),
        Expression::HeredocTemplate(heredoc) => {
            return template_value(reader, &heredoc.template, span);
        }
        Expression::Traversal(traversal) => return reference(reader, traversal, span),
        Expression::Variable(name) => {
            reader.report(
                Problem::UnknownReference {
                    kind: "value",
                    name: name.as_str().to_owned(),
                },
                span,
                "a value",
                format!(
                    "quote it (\"{0}\") if it is a text, or write `var.{0}` for a variable",
                    name.as_str()
                ),
            );
            return None;
        }
        Expression::Null(_) => {
            return unsupported(reader, "`null`", span, "leave the attribute out");
        }
        Expression::Conditional(_) | Expression::UnaryOp(_) | Expression::BinaryOp(_) => {
            return unsupported(reader, "an operator", span, "set the value with a variable");
        }
        Expression::FuncCall(_) => {
            return unsupported(
                reader,
                "a function call",
                span,
                "set the value with a variable",
            );
        }
        Expression::ForExpr(_) => {
            return unsupported(
                reader,
                "a `for` expression",
                span,
                "write the items one by one",
            );
        }
    };
    Some(At { value, span })
}

fn unsupported<T>(
    reader: &mut Reader<'_>,
    what: &str,
    span: Range<usize>,
    help: &str,
) -> Option<T> {
    reader.report(
        Problem::Unsupported {
            what: what.to_owned(),
        },
        span,
        "a value, a template or a reference",
        help.to_owned(),
    );
    None
}

fn object_key(reader: &mut Reader<'_>, key: &ObjectKey) -> Option<At<String>> {
    match key {
        ObjectKey::Ident(name) => Some(At {
            value: name.as_str().to_owned(),
            span: name.span().unwrap_or_default(),
        }),
        ObjectKey::Expression(expression) => {
            let at = evaluate(reader, expression)?;
            match at.value {
                Value::String(value) => Some(At {
                    value,
                    span: at.span,
                }),
                other => {
                    reader.wrong_type("the key", &other, at.span, "a name or a string");
                    None
                }
            }
        }
    }
}

fn template_value(
    reader: &mut Reader<'_>,
    template: &Template,
    span: Range<usize>,
) -> Option<At<Value>> {
    let elements: Vec<&Element> = template.iter().collect();
    // As in Terraform: `"${var.n}"` has the type of `var.n`.
    if let [Element::Interpolation(only)] = elements.as_slice() {
        return evaluate(reader, &only.expr).map(|at| At {
            value: at.value,
            span,
        });
    }
    let mut text = String::new();
    let mut whole = true;
    for element in elements {
        match element {
            Element::Literal(literal) => text.push_str(literal.value()),
            Element::Interpolation(interpolation) => match evaluate(reader, &interpolation.expr) {
                None => whole = false,
                Some(at) => match at.value.text() {
                    Some(part) => text.push_str(&part),
                    None => {
                        reader.wrong_type(
                            "the interpolated value",
                            &at.value,
                            at.span,
                            "a string, a number or a boolean",
                        );
                        whole = false;
                    }
                },
            },
            Element::Directive(directive) => {
                let at = directive.span().unwrap_or(span.clone());
                unsupported::<()>(
                    reader,
                    "a template directive",
                    at,
                    "set the value with a variable",
                );
                whole = false;
            }
        }
    }
    whole.then_some(At {
        value: Value::String(text),
        span,
    })
}

fn reference(
    reader: &mut Reader<'_>,
    traversal: &Traversal,
    span: Range<usize>,
) -> Option<At<Value>> {
    let root = match &traversal.expr {
        Expression::Variable(name) => name.as_str().to_owned(),
        _ => {
            return unsupported(
                reader,
                "this reference",
                span,
                "write `var.NAME` or `image.NAME`",
            );
        }
    };
    let name = match traversal.operators.as_slice() {
        [operator] => match operator.value() {
            TraversalOperator::GetAttr(name) => name.as_str().to_owned(),
            TraversalOperator::AttrSplat(_)
            | TraversalOperator::FullSplat(_)
            | TraversalOperator::Index(_)
            | TraversalOperator::LegacyIndex(_) => {
                return unsupported(
                    reader,
                    "this reference",
                    span,
                    "write `var.NAME` or `image.NAME`",
                );
            }
        },
        _ => {
            return unsupported(
                reader,
                "this reference",
                span,
                "write `var.NAME` or `image.NAME`",
            );
        }
    };
    match root.as_str() {
        "var" => match reader.variables.get(&name) {
            // Its own diagnostic is at its definition.
            Some(None) => None,
            Some(Some(value)) => Some(At {
                value: value.clone(),
                span,
            }),
            None => {
                let nearest = suggest::nearest(&name, reader.variables.keys().map(String::as_str));
                let help = match nearest {
                    Some(right) => format!("write `var.{right}`"),
                    None => format!("define it: variable \"{name}\" {{ type = \"string\" }}"),
                };
                reader.report(
                    Problem::UnknownReference {
                        kind: "variable",
                        name,
                    },
                    span,
                    "a defined variable",
                    help,
                );
                None
            }
        },
        "image" => {
            if reader.images.contains(&name) {
                return Some(At {
                    value: Value::Image(name),
                    span,
                });
            }
            let nearest = suggest::nearest(&name, reader.images.iter().map(String::as_str));
            let help = match nearest {
                Some(right) => format!("write `image.{right}`"),
                None => format!("define it: image \"{name}\" {{ … }}"),
            };
            reader.report(
                Problem::UnknownReference {
                    kind: "image",
                    name,
                },
                span,
                "a defined image",
                help,
            );
            None
        }
        _ => {
            let help = match suggest::nearest(&root, ["var", "image"]) {
                Some(right) => format!("write `{right}.{name}`"),
                None => "quote it if it is a text".to_owned(),
            };
            reader.report(
                Problem::UnknownReference {
                    kind: "reference",
                    name: format!("{root}.{name}"),
                },
                span,
                "`var.NAME` or `image.NAME`",
                help,
            );
            None
        }
    }
}
