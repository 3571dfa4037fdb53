//! Expressions → values. Evaluation is ours rather than the parser library's, whose arguments are eager and whose
//! errors have no place: here a branch that is not taken is not looked at, as in Terraform.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{
    BinaryOp, BinaryOperator, Conditional, Expression, ForExpr, FuncCall, Object, ObjectKey,
    UnaryOp, UnaryOperator,
};

use crate::reader::{Reader, at};
use crate::value::{At, EXACT, Entry, Value, number_text};
use crate::{Problem, functions, reference, suggest, template};

/// `None`: what is wrong has been reported.
pub(crate) fn evaluate(reader: &mut Reader<'_>, expression: &Expression) -> Option<At<Value>> {
    let span = expression.span().unwrap_or_default();
    reader.spend(1, &span)?;
    reader.deeper(&span.clone(), |reader| inner(reader, expression, span))
}

fn inner(
    reader: &mut Reader<'_>,
    expression: &Expression,
    span: Range<usize>,
) -> Option<At<Value>> {
    let value = match expression {
        Expression::Null(_) => Value::Null,
        Expression::String(text) => Value::String(text.as_str().to_owned()),
        Expression::Bool(truth) => Value::Bool(*truth.value()),
        Expression::Number(number) => return number_at(reader, number.value().as_f64()?, span),
        Expression::Parenthesis(inner) => return evaluate(reader, inner.inner()),
        Expression::Array(array) => {
            // All of them, so that each reports what is wrong with it.
            let items: Vec<_> = array.iter().map(|item| evaluate(reader, item)).collect();
            Value::List(items.into_iter().collect::<Option<_>>()?)
        }
        Expression::Object(object) => return object_value(reader, object, span),
        Expression::StringTemplate(template) => {
            return template::evaluate(reader, template, span);
        }
        Expression::HeredocTemplate(heredoc) => {
            return template::evaluate(reader, &heredoc.template, span);
        }
        Expression::Traversal(traversal) => return reference::evaluate(reader, traversal, span),
        Expression::Variable(name) => return word(reader, name.as_str(), span),
        Expression::Conditional(conditional) => return choose(reader, conditional, span),
        Expression::UnaryOp(operation) => return unary(reader, operation, span),
        Expression::BinaryOp(operation) => return binary(reader, operation, span),
        Expression::FuncCall(call) => return call_value(reader, call, span),
        Expression::ForExpr(each) => return for_value(reader, each, span),
    };
    Some(At { value, span })
}

/// A number's literal or result.
fn number_at(reader: &mut Reader<'_>, number: f64, span: Range<usize>) -> Option<At<Value>> {
    if !number.is_finite() || (number.fract() == 0.0 && number.abs() > EXACT) {
        reader.report(
            Problem::TooLarge {
                what: "this number".to_owned(),
            },
            span,
            "a number up to 2^53, which is exact",
            "write it as a text, in quotes",
        );
        return None;
    }
    Some(at(Value::Number(number), span))
}

/// A name alone: of a `for`, or a mistake.
fn word(reader: &mut Reader<'_>, name: &str, span: Range<usize>) -> Option<At<Value>> {
    if let Some(value) = reference::in_scope(reader, name) {
        reader.spend(value.weight(), &span)?;
        return Some(At { value, span });
    }
    let near = suggest::nearest(name, reader.scope.iter().map(|(known, _)| known.as_str()));
    let help = match near {
        Some(right) => format!("write `{right}`"),
        None if reader.isolated => {
            "a template file sees only the values that `templatefile` gives it".to_owned()
        }
        None if reference::ROOTS.contains(&name) => format!("write `{name}.NAME`"),
        None => {
            format!("quote it (\"{name}\") if it is a text, or write `var.{name}` for a variable")
        }
    };
    reader.report(
        Problem::UnknownReference {
            kind: "value",
            name: name.to_owned(),
        },
        span,
        "a value",
        help,
    );
    None
}

fn object_value(reader: &mut Reader<'_>, object: &Object, span: Range<usize>) -> Option<At<Value>> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut whole = true;
    for (key, item) in object.iter() {
        let key = object_key(reader, key);
        let item = evaluate(reader, item.expr());
        let (Some(key), Some(item)) = (key, item) else {
            whole = false;
            continue;
        };
        if entries.contains_key(&key.value) {
            let what = format!("`{}` in a map", key.value);
            reader.report(
                Problem::Duplicate { what },
                key.span,
                "once",
                "remove one of the two",
            );
            whole = false;
            continue;
        }
        let entry = Entry {
            key: key.span,
            item,
        };
        entries.insert(key.value, entry);
    }
    whole.then_some(at(Value::Map(entries), span))
}

fn object_key(reader: &mut Reader<'_>, key: &ObjectKey) -> Option<At<String>> {
    match key {
        ObjectKey::Ident(name) => Some(At {
            value: name.as_str().to_owned(),
            span: name.span().unwrap_or_default(),
        }),
        ObjectKey::Expression(expression) => {
            let key = evaluate(reader, expression)?;
            as_text(reader, "the key", key, "a name or a string")
        }
    }
}

/// A string, or what is printed as one.
fn as_text(
    reader: &mut Reader<'_>,
    what: &str,
    found: At<Value>,
    expected: &str,
) -> Option<At<String>> {
    match found.value.text() {
        Some(value) => Some(At {
            value,
            span: found.span,
        }),
        None => {
            reader.wrong_type(what, &found.value, found.span, expected);
            None
        }
    }
}

pub(crate) fn truth(reader: &mut Reader<'_>, what: &str, expression: &Expression) -> Option<bool> {
    let found = evaluate(reader, expression)?;
    let truth = found.value.truth();
    if truth.is_none() {
        reader.wrong_type(what, &found.value, found.span, "`true` or `false`");
    }
    truth
}

fn choose(
    reader: &mut Reader<'_>,
    conditional: &Conditional,
    span: Range<usize>,
) -> Option<At<Value>> {
    let chosen = if truth(reader, "the condition", &conditional.cond_expr)? {
        &conditional.true_expr
    } else {
        &conditional.false_expr
    };
    evaluate(reader, chosen).map(|found| at(found.value, span))
}

fn operand(reader: &mut Reader<'_>, what: &str, expression: &Expression) -> Option<f64> {
    let found = evaluate(reader, expression)?;
    let number = found.value.number();
    if number.is_none() {
        reader.wrong_type(what, &found.value, found.span, "a number");
    }
    number
}

fn unary(reader: &mut Reader<'_>, operation: &UnaryOp, span: Range<usize>) -> Option<At<Value>> {
    match operation.operator.value() {
        UnaryOperator::Not => {
            let truth = truth(reader, "what `!` negates", &operation.expr)?;
            Some(at(Value::Bool(!truth), span))
        }
        UnaryOperator::Neg => {
            let number = operand(reader, "what `-` negates", &operation.expr)?;
            Some(at(Value::Number(-number), span))
        }
    }
}

fn binary(reader: &mut Reader<'_>, operation: &BinaryOp, span: Range<usize>) -> Option<At<Value>> {
    let operator = *operation.operator.value();
    let left = format!("the left side of `{}`", operator.as_str());
    let right = format!("the right side of `{}`", operator.as_str());
    let (lhs, rhs) = (&operation.lhs_expr, &operation.rhs_expr);
    let value = match operator {
        // The right side may rely on the left one: `x != null && x.y`.
        BinaryOperator::And => {
            Value::Bool(truth(reader, &left, lhs)? && truth(reader, &right, rhs)?)
        }
        BinaryOperator::Or => {
            Value::Bool(truth(reader, &left, lhs)? || truth(reader, &right, rhs)?)
        }
        BinaryOperator::Eq | BinaryOperator::NotEq => {
            let (a, b) = (evaluate(reader, lhs), evaluate(reader, rhs));
            let same = a?.value.same(&b?.value);
            Value::Bool(same == (operator == BinaryOperator::Eq))
        }
        BinaryOperator::Less
        | BinaryOperator::LessEq
        | BinaryOperator::Greater
        | BinaryOperator::GreaterEq => {
            let (a, b) = (operand(reader, &left, lhs), operand(reader, &right, rhs));
            let (a, b) = (a?, b?);
            Value::Bool(match operator {
                BinaryOperator::Less => a < b,
                BinaryOperator::LessEq => a <= b,
                BinaryOperator::Greater => a > b,
                _ => a >= b,
            })
        }
        BinaryOperator::Plus
        | BinaryOperator::Minus
        | BinaryOperator::Mul
        | BinaryOperator::Div
        | BinaryOperator::Mod => {
            let (a, b) = (operand(reader, &left, lhs), operand(reader, &right, rhs));
            let (a, b) = (a?, b?);
            if b == 0.0 && matches!(operator, BinaryOperator::Div | BinaryOperator::Mod) {
                reader.bad_value(
                    &right,
                    "0",
                    rhs.span().unwrap_or_default(),
                    "a number to divide by",
                    "nothing can be divided by 0",
                );
                return None;
            }
            let result = match operator {
                BinaryOperator::Plus => a + b,
                BinaryOperator::Minus => a - b,
                BinaryOperator::Mul => a * b,
                BinaryOperator::Div => a / b,
                _ => a % b,
            };
            return number_at(reader, result, span);
        }
    };
    Some(at(value, span))
}

fn call_value(reader: &mut Reader<'_>, call: &FuncCall, span: Range<usize>) -> Option<At<Value>> {
    let name = &call.name.name;
    if call.name.is_namespaced() {
        reader.report(
            Problem::UnknownReference {
                kind: "function",
                name: name.as_str().to_owned(),
            },
            span,
            "a function of kiln's own",
            "there are no providers: write the value, or give it with a variable",
        );
        return None;
    }
    let arguments: Vec<&Expression> = call.args.iter().collect();
    let name = At {
        value: name.as_str(),
        span: name.span().unwrap_or_else(|| span.clone()),
    };
    let found = functions::call(reader, &name, &arguments, call.args.expand_final(), &span)?;
    reader.spend(found.weight(), &span)?;
    match found {
        Value::Number(number) => number_at(reader, number, span),
        value => Some(at(value, span)),
    }
}

/// What a `for` goes through, as pairs of key and value.
pub(crate) fn pairs(reader: &mut Reader<'_>, found: At<Value>) -> Option<Vec<(Value, At<Value>)>> {
    match found.value {
        Value::List(items) => Some(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| (Value::Number(index as f64), item))
                .collect(),
        ),
        Value::Map(entries) => Some(
            entries
                .into_iter()
                .map(|(key, entry)| (Value::String(key), entry.item))
                .collect(),
        ),
        other => {
            reader.wrong_type(
                "what `for` goes through",
                &other,
                found.span,
                "a list or a map",
            );
            None
        }
    }
}

/// Runs `inner` with the names of one round of a `for`.
pub(crate) fn with_names<T>(
    reader: &mut Reader<'_>,
    key: Option<(&str, Value)>,
    value: (&str, Value),
    inner: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Option<T> {
    let before = reader.scope.len();
    if let Some((name, key)) = key {
        reader.scope.push((name.to_owned(), key));
    }
    reader.scope.push((value.0.to_owned(), value.1));
    let result = inner(reader);
    reader.scope.truncate(before);
    result
}

fn for_value(reader: &mut Reader<'_>, each: &ForExpr, span: Range<usize>) -> Option<At<Value>> {
    let collection = evaluate(reader, &each.intro.collection_expr)?;
    let rounds = pairs(reader, collection)?;
    let key_name = each.intro.key_var.as_ref().map(|name| name.as_str());
    let value_name = each.intro.value_var.as_str();
    let mut items = Vec::new();
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for (key, value) in rounds {
        let key = key_name.map(|name| (name, key));
        let made = with_names(reader, key, (value_name, value.value), |reader| {
            if let Some(condition) = &each.cond
                && !truth(reader, "the condition of `for`", &condition.expr)?
            {
                return Some(None);
            }
            let key = match &each.key_expr {
                Some(key) => {
                    let key = evaluate(reader, key)?;
                    Some(as_text(reader, "the key", key, "a string")?)
                }
                None => None,
            };
            Some(Some((key, evaluate(reader, &each.value_expr)?)))
        })?;
        let Some((key, item)) = made else { continue };
        let Some(key) = key else {
            items.push(item);
            continue;
        };
        if each.grouping {
            let group = entries.entry(key.value).or_insert_with(|| Entry {
                key: key.span.clone(),
                item: at(Value::List(Vec::new()), span.clone()),
            });
            if let Value::List(items) = &mut group.item.value {
                items.push(item);
            }
            continue;
        }
        if entries.contains_key(&key.value) {
            reader.report(
                Problem::Duplicate {
                    what: format!("the key `{}`", key.value),
                },
                key.span,
                "a key of its own in each round",
                "write `...` after the value to collect what has the same key in a list",
            );
            return None;
        }
        let entry = Entry {
            key: key.span,
            item,
        };
        entries.insert(key.value, entry);
    }
    let value = if each.key_expr.is_some() {
        Value::Map(entries)
    } else {
        Value::List(items)
    };
    Some(at(value, span))
}

/// The number as an index, if it is one.
pub(crate) fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// As in "there is no item 7".
pub(crate) fn shown(number: f64) -> String {
    number_text(number)
}
