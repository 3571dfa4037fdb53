//! Texts.

use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::Kind::{Text, Texts, Whole};
use super::{Arguments, Fault, Function, LARGEST, fault, function, too_large};
use crate::reader::Reader;
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function("chomp", &[("text", Text)], |_, a| {
        let cut = a.text(0).trim_end_matches(['\r', '\n']);
        Ok(Value::text_of(cut))
    }),
    function("endswith", &[("text", Text), ("end", Text)], |_, a| {
        Ok(Value::Bool(a.text(0).ends_with(a.text(1))))
    }),
    function("indent", &[("blanks", Whole), ("text", Text)], indent),
    function("join", &[("separator", Text)], join).more("list", Texts),
    function("lower", &[("text", Text)], |_, a| {
        Ok(Value::String(a.text(0).to_lowercase()))
    }),
    function("regex", &[("pattern", Text), ("text", Text)], |_, a| {
        let pattern = pattern(0, a.text(0))?;
        match pattern.captures(a.text(1)) {
            Some(found) => Ok(captured(a, &pattern, &found)),
            None => fault(
                1,
                "what the pattern does not match",
                "a text that the pattern matches",
                "write `try(regex(…), \"\")` for a text that may not match",
            ),
        }
    }),
    function("regexall", &[("pattern", Text), ("text", Text)], |_, a| {
        let pattern = pattern(0, a.text(0))?;
        let all = pattern.captures_iter(a.text(1));
        Ok(a.list_of(all.map(|found| captured(a, &pattern, &found))))
    }),
    function(
        "regex_replace",
        &[("text", Text), ("pattern", Text), ("replacement", Text)],
        |_, a| by_pattern(a, a.text(1)),
    ),
    function(
        "replace",
        &[("text", Text), ("part", Text), ("replacement", Text)],
        replace,
    ),
    function("split", &[("separator", Text), ("text", Text)], |_, a| {
        let (separator, text) = (a.text(0), a.text(1));
        Ok(if separator.is_empty() {
            a.list_of_texts(text.chars().map(String::from))
        } else {
            a.list_of_texts(text.split(separator))
        })
    }),
    function("startswith", &[("text", Text), ("start", Text)], |_, a| {
        Ok(Value::Bool(a.text(0).starts_with(a.text(1))))
    }),
    function("strcontains", &[("text", Text), ("part", Text)], |_, a| {
        Ok(Value::Bool(a.text(0).contains(a.text(1))))
    }),
    function("strrev", &[("text", Text)], |_, a| {
        Ok(Value::String(a.text(0).graphemes(true).rev().collect()))
    }),
    function(
        "substr",
        &[("text", Text), ("offset", Whole), ("length", Whole)],
        substr,
    ),
    function("title", &[("text", Text)], |_, a| {
        let mut made = String::new();
        let mut before = ' ';
        for letter in a.text(0).chars() {
            if before.is_alphanumeric() || before == '_' || before == '\'' {
                made.push(letter);
            } else {
                made.extend(letter.to_uppercase());
            }
            before = letter;
        }
        Ok(Value::String(made))
    }),
    function("trim", &[("text", Text), ("characters", Text)], |_, a| {
        let cut = |letter: char| a.text(1).contains(letter);
        Ok(Value::text_of(a.text(0).trim_matches(cut)))
    }),
    function("trimprefix", &[("text", Text), ("start", Text)], |_, a| {
        let text = a.text(0);
        Ok(Value::text_of(text.strip_prefix(a.text(1)).unwrap_or(text)))
    }),
    function("trimspace", &[("text", Text)], |_, a| {
        Ok(Value::text_of(a.text(0).trim()))
    }),
    function("trimsuffix", &[("text", Text), ("end", Text)], |_, a| {
        let text = a.text(0);
        Ok(Value::text_of(text.strip_suffix(a.text(1)).unwrap_or(text)))
    }),
    function("upper", &[("text", Text)], |_, a| {
        Ok(Value::String(a.text(0).to_uppercase()))
    }),
];

fn indent(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let text = a.text(1);
    let Ok(blanks) = usize::try_from(a.whole(0)) else {
        return fault(0, "a negative number", "0 or more", "write 0 or more");
    };
    let lines = text.matches('\n').count();
    if blanks.saturating_mul(lines) > LARGEST {
        return too_large(0);
    }
    let lead = format!("\n{}", " ".repeat(if lines == 0 { 0 } else { blanks }));
    Ok(Value::String(text.replace('\n', &lead)))
}

fn join(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    if a.values.len() < 2 {
        return fault(
            0,
            "followed by no list",
            "a separator and a list",
            "write `join(\", \", list)`",
        );
    }
    let parts: Vec<&str> = (1..a.values.len()).flat_map(|i| a.texts(i)).collect();
    if parts.len().saturating_mul(a.text(0).len()) > LARGEST {
        return too_large(0);
    }
    Ok(Value::String(parts.join(a.text(0))))
}

/// The pattern of an argument, in the syntax that Go's regular expressions have as well.
fn pattern(index: usize, text: &str) -> Result<Regex, Fault> {
    regex::RegexBuilder::new(text)
        .size_limit(1 << 20)
        .build()
        .or_else(|error| {
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default();
            fault(
                index,
                format!("`{text}`"),
                "a regular expression",
                why.trim_start_matches("error: ").to_owned(),
            )
        })
}

/// As in Terraform: the whole match, or a list of its groups, or a map when they have names.
fn captured(a: &Arguments, pattern: &Regex, found: &regex::Captures<'_>) -> Value {
    let group = |found: Option<regex::Match<'_>>| match found {
        Some(part) => Value::text_of(part.as_str()),
        None => Value::Null,
    };
    let names: Vec<&str> = pattern.capture_names().flatten().collect();
    if !names.is_empty() {
        let named = names
            .iter()
            .map(|name| ((*name).to_owned(), group(found.name(name))));
        return a.map_of(named);
    }
    if pattern.captures_len() > 1 {
        return a.list_of((1..pattern.captures_len()).map(|index| group(found.get(index))));
    }
    group(found.get(0))
}

fn replace(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let (text, part, replacement) = (a.text(0), a.text(1), a.text(2));
    let inner = part
        .strip_prefix('/')
        .and_then(|rest| rest.strip_suffix('/'));
    if let Some(inner) = inner {
        return by_pattern(a, inner);
    }
    within_bounds(text.matches(part).count(), replacement.len())?;
    Ok(Value::String(text.replace(part, replacement)))
}

/// With `$1`, `${1}` and `${name}` for the groups.
fn by_pattern(a: &Arguments, inner: &str) -> Result<Value, Fault> {
    let (text, replacement) = (a.text(0), a.text(2));
    let pattern = pattern(1, inner)?;
    // `$1` may stand in it many times: each at most the whole text.
    let growth = if replacement.contains('$') {
        replacement.len().saturating_mul(text.len().max(1))
    } else {
        replacement.len()
    };
    within_bounds(pattern.find_iter(text).count(), growth)?;
    Ok(Value::String(
        pattern.replace_all(text, replacement).into_owned(),
    ))
}

fn within_bounds(count: usize, growth: usize) -> Result<(), Fault> {
    if count.saturating_mul(growth) > LARGEST.saturating_mul(16) {
        return too_large(2);
    }
    Ok(())
}

fn substr(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let letters: Vec<&str> = a.text(0).graphemes(true).collect();
    let count = letters.len() as i64;
    let (offset, length) = (a.whole(1), a.whole(2));
    // A negative offset counts from the end, a negative length is all the rest.
    let start = if offset < 0 { count + offset } else { offset }.clamp(0, count);
    let end = if length < 0 {
        count
    } else {
        start.saturating_add(length).min(count)
    };
    Ok(Value::String(
        letters[start as usize..end as usize].concat(),
    ))
}
