//! From one type to another.

use super::Kind::{Any, Collection};
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::types::unique;
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function("sensitive", &[("value", Any)], |reader, a| {
        reader.taint(Some("`sensitive(…)`".to_owned()));
        Ok(a.value(0).clone())
    }),
    function("tobool", &[("value", Any)], |_, a| {
        or_null(a, a.value(0).truth().map(Value::Bool), "`true` or `false`")
    }),
    function("tolist", &[("collection", Collection)], items),
    function("tomap", &[("map", super::Kind::Map)], |_, a| {
        Ok(a.value(0).clone())
    }),
    function("tonumber", &[("value", Any)], |_, a| {
        or_null(a, a.value(0).number().map(Value::Number), "a number")
    }),
    function(
        "toset",
        &[("collection", Collection)],
        |reader, a| match items(reader, a)? {
            Value::List(items) => Ok(Value::List(unique(items))),
            other => Ok(other),
        },
    ),
    function("tostring", &[("value", Any)], |_, a| {
        or_null(a, a.value(0).text().map(Value::String), "a string")
    }),
];

fn or_null(a: &Arguments, made: Option<Value>, expected: &str) -> Result<Value, Fault> {
    match (a.value(0), made) {
        (Value::Null, _) => Ok(Value::Null),
        (_, Some(made)) => Ok(made),
        (other, None) => {
            let found = match other.text() {
                Some(text) => format!("`{text}`"),
                None => other.kind().to_owned(),
            };
            fault(0, found, expected, format!("give it {expected}"))
        }
    }
}

fn items(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    match a.value(0) {
        Value::Map(_) => fault(
            0,
            "a map",
            "a list",
            "write `keys(…)` or `values(…)` for a list of a map's",
        ),
        other => Ok(other.clone()),
    }
}
