//! JSON, YAML, base64, URLs and CSV.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Kind::{Any, Text};
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::value::{EXACT, Value};

pub(super) const FUNCTIONS: &[Function] = &[
    function("base64decode", &[("text", Text)], |_, a| {
        match STANDARD.decode(a.text(0)).map(String::from_utf8) {
            Ok(Ok(text)) => Ok(Value::String(text)),
            Ok(Err(_)) => fault(
                0,
                "what is no UTF-8 text once decoded",
                "base64 of a text",
                "copy a file instead",
            ),
            Err(error) => fault(0, error.to_string(), "base64", "encode it as `base64` does"),
        }
    }),
    function("base64encode", &[("text", Text)], |_, a| {
        Ok(Value::String(STANDARD.encode(a.text(0))))
    }),
    function("csvdecode", &[("text", Text)], csvdecode),
    function(
        "jsondecode",
        &[("text", Text)],
        |_, a| match serde_json::from_str(a.text(0)) {
            Ok(json) => from_json(a, json),
            Err(error) => fault(0, error.to_string(), "JSON", "mend the JSON"),
        },
    ),
    function("jsonencode", &[("value", Any)], |_, a| {
        if has_image(a.value(0)) {
            return fault(
                0,
                "a value with an image",
                "texts, numbers, lists and maps",
                "leave the image out",
            );
        }
        Ok(Value::String(go_json(&to_json(a.value(0)).to_string())))
    }),
    function("urldecode", &[("text", Text)], urldecode),
    function("urlencode", &[("text", Text)], |_, a| {
        let mut made = String::new();
        for byte in a.text(0).bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    made.push(byte as char)
                }
                b' ' => made.push('+'),
                other => made.push_str(&format!("%{other:02X}")),
            }
        }
        Ok(Value::String(made))
    }),
    function("yamlencode", &[("value", Any)], |_, a| {
        if has_image(a.value(0)) {
            return fault(
                0,
                "a value with an image",
                "texts, numbers, lists and maps",
                "leave the image out",
            );
        }
        let mut made = String::new();
        yaml(&to_json(a.value(0)), 0, false, &mut made);
        made.push('\n');
        Ok(Value::String(made))
    }),
];

/// The same for values that are the same, and different for others.
pub(crate) fn fingerprint(value: &Value) -> String {
    to_json(value).to_string()
}

fn has_image(value: &Value) -> bool {
    match value {
        Value::Image(_) => true,
        Value::List(items) => items.iter().any(|item| has_image(&item.value)),
        Value::Map(entries) => entries.values().any(|entry| has_image(&entry.item.value)),
        Value::Null | Value::String(_) | Value::Number(_) | Value::Bool(_) => false,
    }
}

pub(super) fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::String(text) => text.as_str().into(),
        Value::Image(name) => format!("image.{name}").into(),
        Value::Bool(truth) => (*truth).into(),
        Value::Number(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            (*number as i64).into()
        }
        Value::Number(number) => (*number).into(),
        Value::List(items) => items.iter().map(|item| to_json(&item.value)).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|(name, entry)| (name.clone(), to_json(&entry.item.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// Terraform's encoder is Go's, which keeps its output safe inside HTML.
fn go_json(json: &str) -> String {
    let mut made = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                made.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            other => made.push(other),
        }
    }
    made
}

fn from_json(a: &Arguments, json: serde_json::Value) -> Result<Value, Fault> {
    Ok(match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(truth),
        serde_json::Value::Number(number) => {
            let exact = number
                .as_f64()
                .filter(|n| n.fract() != 0.0 || n.abs() <= EXACT);
            match exact {
                Some(number) => Value::Number(number),
                None => {
                    return fault(
                        0,
                        format!("the number {number}"),
                        "numbers up to 2^53",
                        "write it as a string",
                    );
                }
            }
        }
        serde_json::Value::String(text) => Value::String(text),
        serde_json::Value::Array(items) => {
            let items: Result<Vec<Value>, Fault> =
                items.into_iter().map(|item| from_json(a, item)).collect();
            a.list_of(items?)
        }
        serde_json::Value::Object(entries) => {
            let mut made = Vec::new();
            for (name, item) in entries {
                made.push((name, from_json(a, item)?));
            }
            a.map_of(made)
        }
    })
}

/// In Terraform's form: texts in double quotes, which JSON's are.
fn yaml(value: &serde_json::Value, indent: usize, in_place: bool, made: &mut String) {
    use std::fmt::Write;
    let lead = " ".repeat(indent);
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 || !in_place {
                    made.push_str(if index > 0 { "\n" } else { "" });
                    made.push_str(&lead);
                }
                made.push_str("- ");
                yaml(item, indent + 2, true, made);
            }
        }
        serde_json::Value::Object(entries) if !entries.is_empty() => {
            for (index, (name, item)) in entries.iter().enumerate() {
                if index > 0 || !in_place {
                    made.push_str(if index > 0 { "\n" } else { "" });
                    made.push_str(&lead);
                }
                // Writing to a String cannot fail.
                let _ = write!(made, "{}:", serde_json::Value::from(name.as_str()));
                match item {
                    serde_json::Value::Array(inner) if !inner.is_empty() => {
                        made.push('\n');
                        yaml(item, indent, false, made);
                    }
                    serde_json::Value::Object(inner) if !inner.is_empty() => {
                        made.push('\n');
                        yaml(item, indent + 2, false, made);
                    }
                    _ => {
                        made.push(' ');
                        yaml(item, indent, true, made);
                    }
                }
            }
        }
        other => made.push_str(&other.to_string()),
    }
}

fn urldecode(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let mut bytes = Vec::new();
    let mut rest = a.text(0).bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()]
                    .map(|d| d.and_then(|digit| char::from(digit).to_digit(16)));
                let [Some(high), Some(low)] = digits else {
                    return fault(
                        0,
                        "a `%` without two digits behind it",
                        "what `urlencode` gives",
                        "write `%25` for a `%`",
                    );
                };
                (high << 4 | low) as u8
            }
            other => other,
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Value::String(text)),
        Err(_) => fault(
            0,
            "what is no UTF-8 text once decoded",
            "what `urlencode` gives",
            "encode a text",
        ),
    }
}

/// RFC 4180; the first row names the columns.
fn csvdecode(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let Some(rows) = csv(a.text(0)) else {
        return fault(
            0,
            "a quote that is not closed",
            "CSV (RFC 4180)",
            "close the quote",
        );
    };
    let mut rows = rows.into_iter();
    let Some(names) = rows.next() else {
        return fault(
            0,
            "an empty text",
            "CSV with a first row of names",
            "name the columns in the first row",
        );
    };
    let mut made = Vec::new();
    for (index, row) in rows.enumerate() {
        if row.len() != names.len() {
            let found = format!(
                "a row {} with {} fields instead of {}",
                index + 2,
                row.len(),
                names.len()
            );
            return fault(0, found, "as many fields in each row", "mend the row");
        }
        let fields = names
            .iter()
            .cloned()
            .zip(row.into_iter().map(Value::String));
        made.push(a.map_of(fields));
    }
    Ok(a.list_of(made))
}

fn csv(text: &str) -> Option<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut field = String::new();
    let mut letters = text.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted => {
                if letters.next_if_eq(&'"').is_some() {
                    field.push('"');
                } else {
                    quoted = false;
                }
            }
            other if quoted => field.push(other),
            '"' if field.is_empty() => quoted = true,
            ',' => row.push(std::mem::take(&mut field)),
            '\r' if letters.peek() == Some(&'\n') => {}
            '\n' => {
                // An empty line is no row.
                if !row.is_empty() || !field.is_empty() {
                    row.push(std::mem::take(&mut field));
                    rows.push(std::mem::take(&mut row));
                }
            }
            other => field.push(other),
        }
    }
    if !row.is_empty() || !field.is_empty() {
        row.push(field);
        rows.push(row);
    }
    (!quoted).then_some(rows)
}
