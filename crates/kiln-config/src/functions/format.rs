//! `format` and `formatlist`: the verbs of Go's fmt package that Terraform documents.

use super::Kind::{Any, Text};
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::value::{Value, number_text};

pub(super) const FUNCTIONS: &[Function] = &[
    function("format", &[("format", Text)], |_, a| {
        let values: Vec<&Value> = a.values.iter().skip(1).map(|at| &at.value).collect();
        one(a.text(0), &values).map(Value::String)
    })
    .more("values", Any),
    function("formatlist", &[("format", Text)], formatlist).more("lists", Any),
];

fn formatlist(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let mut count = None;
    for index in 1..a.values.len() {
        if let Value::List(items) = a.value(index) {
            match count {
                Some(before) if before != items.len() => {
                    let found = format!("a list of {} items", items.len());
                    return fault(
                        index,
                        found,
                        format!("{before} items, as before"),
                        "give lists of one length",
                    );
                }
                _ => count = Some(items.len()),
            }
        }
    }
    let mut made = Vec::new();
    for row in 0..count.unwrap_or(1) {
        let values: Vec<&Value> = (1..a.values.len())
            .map(|index| match a.value(index) {
                Value::List(items) => items.get(row).map_or(&Value::Null, |item| &item.value),
                other => other,
            })
            .collect();
        made.push(Value::String(one(a.text(0), &values)?));
    }
    Ok(a.list_of(made))
}

/// The widest a verb may be.
const WIDEST: usize = 1024;

#[derive(Default)]
struct Verb {
    minus: bool,
    plus: bool,
    space: bool,
    zero: bool,
    sharp: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

fn one(format: &str, values: &[&Value]) -> Result<String, Fault> {
    let letters: Vec<char> = format.chars().collect();
    let mut made = String::new();
    let mut at = 0;
    let mut next = 0;
    let mut most = 0;
    let mut picked = false;
    while at < letters.len() {
        let letter = letters[at];
        at += 1;
        if letter != '%' {
            made.push(letter);
            continue;
        }
        if letters.get(at) == Some(&'%') {
            made.push('%');
            at += 1;
            continue;
        }
        let mut verb = Verb::default();
        loop {
            match letters.get(at) {
                Some('-') => verb.minus = true,
                Some('+') => verb.plus = true,
                Some(' ') => verb.space = true,
                Some('0') => verb.zero = true,
                Some('#') => verb.sharp = true,
                _ => break,
            }
            at += 1;
        }
        let number = |at: &mut usize| -> Option<usize> {
            let digits: String = letters[*at..]
                .iter()
                .take_while(|c| c.is_ascii_digit())
                .collect();
            *at += digits.len();
            digits.parse().ok()
        };
        verb.width = number(&mut at);
        if letters.get(at) == Some(&'.') {
            at += 1;
            verb.precision = Some(number(&mut at).unwrap_or(0));
        }
        if letters.get(at) == Some(&'[') {
            at += 1;
            let index = number(&mut at);
            match (index, letters.get(at)) {
                (Some(index), Some(']')) if index > 0 => {
                    next = index - 1;
                    picked = true;
                }
                _ => {
                    return fault(
                        0,
                        "a `[` without a number and a `]`",
                        "a format",
                        "write `%[1]s`",
                    );
                }
            }
            at += 1;
        }
        if verb.width.unwrap_or(0).max(verb.precision.unwrap_or(0)) > WIDEST {
            return fault(
                0,
                "a width above 1024",
                "a width of at most 1024",
                "write a smaller one",
            );
        }
        let Some(mode) = letters.get(at).copied() else {
            return fault(0, "a `%` at the end", "a format", "write `%%` for a `%`");
        };
        at += 1;
        let Some(value) = values.get(next) else {
            return fault(
                0,
                format!("a verb for a value {}, which is not there", next + 1),
                "as many values as verbs",
                "add the value, or write `%%` for a `%`",
            );
        };
        made.push_str(&show(&verb, mode, value, next + 1)?);
        next += 1;
        most = most.max(next);
    }
    if most < values.len() && !picked {
        return fault(
            most + 1,
            "one that no verb shows",
            "as many values as verbs",
            "remove it, or add a verb such as `%s`",
        );
    }
    Ok(made)
}

fn show(verb: &Verb, mode: char, value: &Value, index: usize) -> Result<String, Fault> {
    let wrong = |expected: &str| {
        fault(
            index,
            value.kind(),
            format!("{expected} for `%{mode}`"),
            "write `%v` for a value of any type",
        )
    };
    let json = || super::encoding::to_json(value).to_string();
    let mut text = match mode {
        's' => match value.text() {
            Some(text) => cut(verb, text),
            None => return wrong("a string"),
        },
        'q' => match value.text() {
            Some(text) => serde_json::Value::from(cut(verb, text)).to_string(),
            None => return wrong("a string"),
        },
        't' => match value.truth() {
            Some(truth) => truth.to_string(),
            None => return wrong("a boolean"),
        },
        'v' if verb.sharp => json(),
        'v' => match value {
            Value::Null => "null".to_owned(),
            Value::Number(number) => signed(verb, *number, number_text(number.abs())),
            other => other.text().unwrap_or_else(json),
        },
        'd' | 'b' | 'o' | 'x' | 'X' => match (mode, value, value.number()) {
            ('x', Value::String(text), _) => text.bytes().map(|b| format!("{b:02x}")).collect(),
            ('X', Value::String(text), _) => text.bytes().map(|b| format!("{b:02X}")).collect(),
            (_, _, Some(number)) => {
                // As Terraform: decimals are cut off.
                let whole = number.abs().trunc() as u64;
                let sharp = verb.sharp;
                let digits = match (mode, sharp) {
                    ('b', _) => format!("{whole:b}"),
                    ('o', false) => format!("{whole:o}"),
                    ('o', true) => format!("0{whole:o}"),
                    ('x', false) => format!("{whole:x}"),
                    ('x', true) => format!("{whole:#x}"),
                    ('X', false) => format!("{whole:X}"),
                    ('X', true) => format!("0X{whole:X}"),
                    _ => whole.to_string(),
                };
                signed(verb, number.trunc(), digits)
            }
            _ => return wrong("a number"),
        },
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => match value.number() {
            None => return wrong("a number"),
            Some(number) => {
                let size = number.abs();
                let digits = match mode {
                    'f' | 'F' => format!("{size:.*}", verb.precision.unwrap_or(6)),
                    'e' => exponent(&format!("{size:.*e}", verb.precision.unwrap_or(6))),
                    'E' => {
                        exponent(&format!("{size:.*e}", verb.precision.unwrap_or(6))).to_uppercase()
                    }
                    // The shortest that says it, with an exponent where it is far from 1.
                    _ if size != 0.0 && !(1e-4..1e21).contains(&size) => {
                        exponent(&format!("{size:e}"))
                    }
                    _ => size.to_string(),
                };
                signed(verb, number, digits)
            }
        },
        other => {
            return fault(
                0,
                format!("the verb `%{other}`"),
                "%s %q %d %f %e %g %t %v %#v %b %o %x %X",
                "write `%%` for a `%`",
            );
        }
    };
    let length = text.chars().count();
    if let Some(missing) = verb.width.and_then(|width| width.checked_sub(length)) {
        if verb.minus {
            text.push_str(&" ".repeat(missing));
        } else if verb.zero {
            let sign = usize::from(text.starts_with(['-', '+', ' ']));
            text.insert_str(sign, &"0".repeat(missing));
        } else {
            text.insert_str(0, &" ".repeat(missing));
        }
    }
    Ok(text)
}

fn cut(verb: &Verb, text: String) -> String {
    match verb.precision {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    }
}

fn signed(verb: &Verb, number: f64, digits: String) -> String {
    if number < 0.0 {
        format!("-{digits}")
    } else if verb.plus {
        format!("+{digits}")
    } else if verb.space {
        format!(" {digits}")
    } else {
        digits
    }
}

/// Rust's `1.5e3` in Go's form, `1.5e+03`.
fn exponent(text: &str) -> String {
    let Some((digits, exponent)) = text.split_once('e') else {
        return text.to_owned();
    };
    let (sign, number) = match exponent.strip_prefix('-') {
        Some(number) => ('-', number),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{number:0>2}")
}
