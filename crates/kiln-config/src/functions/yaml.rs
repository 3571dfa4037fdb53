//! `yamldecode`: YAML 1.2.2 with its core schema, one document, and the merge keys of YAML 1.1, as Terraform has them.
//!
//! Where YAML 1.1 and 1.2 make different numbers of one word, neither is taken: `0644` would be 420 or 644.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::Kind::Text;
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::value::{EXACT, Value};

pub(super) const FUNCTIONS: &[Function] = &[function("yamldecode", &[("text", Text)], yamldecode)];

/// Of lists and maps in each other, as `jsondecode` has it.
const DEEPEST: usize = 128;

/// Aliases of aliases grow without bound.
const MOST_ALIASED: usize = 1 << 20;

const CORE: &str = "tag:yaml.org,2002:";

fn yamldecode(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    Builder::new(a)
        .build()
        .or_else(|Wrong { place, what, help }| {
            let (line, column) = (place.line(), place.col() + 1);
            let found = format!("{what} in line {line}, column {column}");
            fault(0, found, "YAML", help)
        })
}

struct Wrong {
    place: Marker,
    what: String,
    help: &'static str,
}

impl From<ScanError> for Wrong {
    fn from(error: ScanError) -> Self {
        wrong(*error.marker(), error.info(), "mend the YAML")
    }
}

fn wrong(place: Marker, what: impl Into<String>, help: &'static str) -> Wrong {
    Wrong {
        place,
        what: what.into(),
        help,
    }
}

/// What is not closed yet.
enum Open {
    List(Vec<Value>),
    Map {
        entries: BTreeMap<String, Value>,
        /// Of merge keys; the map's own entries and earlier ones win.
        merged: Vec<Value>,
        key: Option<Key>,
    },
}

enum Key {
    Name(String),
    Merge,
}

struct Builder<'a> {
    arguments: &'a Arguments,
    parser: Parser<'a, StrInput<'a>>,
    open: Vec<(Open, usize)>,
    /// By the parser's numbers.
    anchors: BTreeMap<usize, Value>,
    /// Of those that are not closed.
    within: BTreeSet<usize>,
    root: Option<Value>,
    /// The measure of what aliases copied.
    aliased: usize,
}

impl<'a> Builder<'a> {
    fn new(arguments: &'a Arguments) -> Self {
        Self {
            arguments,
            parser: Parser::new_from_str(arguments.text(0)),
            open: Vec::new(),
            anchors: BTreeMap::new(),
            within: BTreeSet::new(),
            root: None,
            aliased: 0,
        }
    }

    /// Null where there is no document.
    fn build(mut self) -> Result<Value, Wrong> {
        while let Some(next) = self.parser.next_event() {
            let (event, span) = next?;
            let place = span.start;
            match event {
                Event::Scalar(text, style, anchor, tag) => {
                    self.scalar(&text, style, anchor, tag.as_deref(), place)?;
                }
                Event::SequenceStart(anchor, tag) => {
                    self.start(Open::List(Vec::new()), "seq", anchor, tag.as_deref(), place)?;
                }
                Event::MappingStart(anchor, tag) => {
                    let map = Open::Map {
                        entries: BTreeMap::new(),
                        merged: Vec::new(),
                        key: None,
                    };
                    self.start(map, "map", anchor, tag.as_deref(), place)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end(place)?,
                Event::Alias(anchor) if self.within.contains(&anchor) => {
                    let help = "a value can't have itself in it";
                    return Err(wrong(place, "an alias within what it names", help));
                }
                Event::Alias(anchor) => {
                    let value = self.anchors.get(&anchor);
                    let unknown = || {
                        let help = "write the anchor before it";
                        wrong(place, "an alias without an anchor", help)
                    };
                    let value = value.ok_or_else(unknown)?;
                    self.aliased += value.weight();
                    if self.aliased > MOST_ALIASED {
                        let what = format!("aliases for more than {MOST_ALIASED} values");
                        return Err(wrong(place, what, "write less"));
                    }
                    let value = value.clone();
                    self.put(value, 0, place)?;
                }
                Event::DocumentStart(_) if self.root.is_some() => {
                    return Err(wrong(
                        place,
                        "a second document",
                        "keep one document in the text",
                    ));
                }
                Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::StreamStart
                | Event::StreamEnd
                | Event::Nothing => {}
            }
        }
        Ok(self.root.unwrap_or(Value::Null))
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        place: Marker,
    ) -> Result<(), Wrong> {
        let is_plain = style == ScalarStyle::Plain;
        if let Some((
            Open::Map {
                key: key @ None, ..
            },
            _,
        )) = self.open.last_mut()
        {
            // A number or a boolean that is a key is a text.
            *key = Some(if is_plain && text == "<<" && tag.is_none() {
                Key::Merge
            } else {
                Key::Name(text.to_owned())
            });
            if anchor > 0 {
                self.anchors.insert(anchor, Value::text_of(text));
            }
            return Ok(());
        }
        let value = match tag {
            None if is_plain => plain(text, place)?,
            None => Value::text_of(text),
            Some(tag) => tagged(text, tag, place)?,
        };
        self.put(value, anchor, place)
    }

    fn start(
        &mut self,
        open: Open,
        kind: &str,
        anchor: usize,
        tag: Option<&Tag>,
        place: Marker,
    ) -> Result<(), Wrong> {
        if let Some(tag) = tag
            && !(tag.handle == CORE && tag.suffix == kind)
        {
            return Err(unknown_tag(tag, place));
        }
        if let Some((Open::Map { key: None, .. }, _)) = self.open.last() {
            return Err(wrong(place, "a list or map as a key", "keys are texts"));
        }
        if self.open.len() == DEEPEST {
            let what = format!("more than {DEEPEST} lists and maps in each other");
            return Err(wrong(place, what, "make it flatter"));
        }
        if anchor > 0 {
            self.within.insert(anchor);
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn end(&mut self, place: Marker) -> Result<(), Wrong> {
        let Some((open, anchor)) = self.open.pop() else {
            return Ok(());
        };
        self.within.remove(&anchor);
        let value = match open {
            Open::List(items) => self.arguments.list_of(items),
            Open::Map {
                mut entries,
                merged,
                ..
            } => {
                for map in merged {
                    let Value::Map(more) = map else { continue };
                    for (name, entry) in more {
                        entries.entry(name).or_insert(entry.item.value);
                    }
                }
                self.arguments.map_of(entries)
            }
        };
        self.put(value, anchor, place)
    }

    fn put(&mut self, value: Value, anchor: usize, place: Marker) -> Result<(), Wrong> {
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Open::List(items), _)) => items.push(value),
            Some((
                Open::Map {
                    entries,
                    merged,
                    key,
                },
                _,
            )) => match key.take() {
                Some(Key::Name(name)) if entries.contains_key(&name) => {
                    let what = format!("a second `{name}`");
                    return Err(wrong(place, what, "take one of them out"));
                }
                Some(Key::Name(name)) => {
                    entries.insert(name, value);
                }
                Some(Key::Merge) => match value {
                    Value::Map(_) => merged.push(value),
                    Value::List(items)
                        if items.iter().all(|item| matches!(item.value, Value::Map(_))) =>
                    {
                        merged.extend(items.into_iter().map(|item| item.value));
                    }
                    other => {
                        let what = format!("{} behind `<<`", other.kind());
                        return Err(wrong(place, what, "merge a map, or a list of maps"));
                    }
                },
                // An alias that is a key.
                None => match value.text() {
                    Some(name) => *key = Some(Key::Name(name)),
                    None => return Err(wrong(place, "a list or map as a key", "keys are texts")),
                },
            },
        }
        Ok(())
    }
}

/// A scalar without quotes, by the core schema.
fn plain(text: &str, place: Marker) -> Result<Value, Wrong> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match number(text, place)? {
            Some(number) => Value::Number(number),
            None => Value::text_of(text),
        },
    })
}

fn tagged(text: &str, tag: &Tag, place: Marker) -> Result<Value, Wrong> {
    // The tag `!` makes anything a text.
    if matches!(
        (tag.handle.as_str(), tag.suffix.as_str()),
        ("", "!") | ("!", "")
    ) {
        return Ok(Value::text_of(text));
    }
    if tag.handle != CORE {
        return Err(unknown_tag(tag, place));
    }
    let value = match tag.suffix.as_str() {
        // Base64 of `!!binary` stays as it is written, and so does a date.
        "str" | "binary" | "timestamp" => return Ok(Value::text_of(text)),
        "null" | "bool" => plain(text, place)?,
        // `!!int "1"` is one.
        "int" | "float" => plain(text, place)?,
        _ => return Err(unknown_tag(tag, place)),
    };
    let fits = match (tag.suffix.as_str(), &value) {
        ("null", Value::Null) | ("bool", Value::Bool(_)) | ("float", Value::Number(_)) => true,
        ("int", Value::Number(number)) => number.fract() == 0.0,
        _ => false,
    };
    if fits {
        Ok(value)
    } else {
        let what = format!("`{text}`, which is no !!{}", tag.suffix);
        Err(wrong(place, what, "take the tag away, or mend the value"))
    }
}

fn unknown_tag(tag: &Tag, place: Marker) -> Wrong {
    let shown = match tag.handle.as_str() {
        CORE => format!("!!{}", tag.suffix),
        _ => format!("{}{}", tag.handle, tag.suffix),
    };
    let help = "write it without the tag: the core schema's are !!str, !!int, !!float, !!bool, !!null, !!seq and !!map";
    wrong(place, format!("the tag `{shown}`"), help)
}

/// Section 10.3.2 of YAML 1.2.2. `None`: it is a text.
fn number(text: &str, place: Marker) -> Result<Option<f64>, Wrong> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let radixed = [("0x", 16), ("0o", 8)]
        .into_iter()
        .find_map(|(prefix, radix)| Some((text.strip_prefix(prefix)?, radix)))
        .filter(|(digits, radix)| all(digits, *radix));
    if let Some((digits, radix)) = radixed {
        let number = u64::from_str_radix(digits, radix)
            .ok()
            .map(|number| number as f64);
        return exact(number, text, place).map(Some);
    }
    if digits.len() > 1 && digits.starts_with('0') && all(digits, 8) {
        let what = format!("`{text}`, which is octal in YAML 1.1 and decimal in YAML 1.2");
        return Err(wrong(place, what, "quote it, or write it as `0o…`"));
    }
    let grouped = digits.replace('_', "");
    if grouped.len() < digits.len()
        && digits.starts_with(|c: char| c.is_ascii_digit())
        && is_decimal(&grouped)
    {
        let what = format!("`{text}`, which is a number in YAML 1.1 and a text in YAML 1.2");
        return Err(wrong(place, what, "quote it, or leave out the `_`"));
    }
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        let what = format!("the number `{text}`");
        return Err(wrong(place, what, "quote it"));
    }
    if !is_decimal(digits) {
        return Ok(None);
    }
    let number = digits.parse::<f64>().ok();
    let number = number.map(|number| if negative { -number } else { number });
    exact(number, text, place).map(Some)
}

/// `[0-9]+ ( . [0-9]* )?` or `. [0-9]+`, and then perhaps an exponent.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let signed = |exponent: &str| {
        let part = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !part.is_empty() && digits(part)
    };
    digits(whole)
        && digits(decimals)
        && !(whole.is_empty() && decimals.is_empty())
        && exponent.is_none_or(signed)
}

fn exact(number: Option<f64>, text: &str, place: Marker) -> Result<f64, Wrong> {
    number
        .filter(|number| number.is_finite() && (number.fract() != 0.0 || number.abs() <= EXACT))
        .ok_or_else(|| {
            wrong(
                place,
                format!("the number {text}, which is above 2^53"),
                "quote it",
            )
        })
}
