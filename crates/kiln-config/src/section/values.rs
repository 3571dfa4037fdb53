//! The values of attributes, each of its type; what is not is told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Section;
use crate::reader::Reader;
use crate::units;
use crate::value::{At, Entry, Value, number_text};

impl Section<'_> {
    pub(crate) fn string(&self, reader: &mut Reader<'_>, name: &str) -> Option<At<String>> {
        let At { value, span } = self.value(name)?;
        match value {
            Value::String(value) => Some(At { value, span }),
            other => {
                reader.wrong_type(&self.what(name), &other, span, "a string");
                None
            }
        }
    }

    /// A string for which `is_good` holds; of another one it is told what was expected, and `help` what to write.
    pub(crate) fn string_where<H: Into<String>>(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        is_good: impl FnOnce(&str) -> bool,
        expected: &str,
        help: impl FnOnce(&str) -> H,
    ) -> Option<At<String>> {
        let found = self.string(reader, name)?;
        if is_good(&found.value) {
            return Some(found);
        }
        let said = format!("`{}`", found.value);
        let help = help(&found.value);
        reader.bad_value(&self.what(name), said, found.span, expected, help);
        None
    }

    /// The path of an HTTP request.
    pub(crate) fn request_path(&self, reader: &mut Reader<'_>, name: &str) -> Option<At<String>> {
        let is_good = |path: &str| {
            let mut bytes = path.bytes();
            path.starts_with('/') && bytes.all(|byte| byte.is_ascii_graphic() && byte != b'#')
        };
        let help = |path: &str| {
            let right = path.trim_start_matches('/').replace([' ', '#'], "");
            format!("write \"/{right}\"")
        };
        let expected = "a path that starts with `/`";
        self.string_where(reader, name, is_good, expected, help)
    }

    pub(crate) fn boolean(&self, reader: &mut Reader<'_>, name: &str) -> Option<bool> {
        let At { value, span } = self.value(name)?;
        match value {
            Value::Bool(truth) => Some(truth),
            value => {
                reader.wrong_type(&self.what(name), &value, span, "`true` or `false`");
                None
            }
        }
    }

    pub(crate) fn strings(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
    ) -> Option<At<Vec<At<String>>>> {
        let At { value, span } = self.value(name)?;
        let Value::List(items) = value else {
            reader.wrong_type(&self.what(name), &value, span, "a list of strings");
            return None;
        };
        let mut texts = Vec::new();
        for At { value, span } in items {
            match value {
                Value::String(value) => texts.push(At { value, span }),
                other => reader.wrong_type(
                    &format!("an item of {}", self.what(name)),
                    &other,
                    span,
                    "a string",
                ),
            }
        }
        Some(At { value: texts, span })
    }

    /// A string, or a list of them.
    pub(crate) fn one_or_more(&self, reader: &mut Reader<'_>, name: &str) -> Vec<At<String>> {
        match self.value(name) {
            Some(At {
                value: Value::String(value),
                span,
            }) => vec![At { value, span }],
            Some(_) => self
                .strings(reader, name)
                .map(|list| list.value)
                .unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// A map whose values are strings; numbers and booleans are taken as they would be printed.
    pub(crate) fn map(
        &self,
        reader: &mut Reader<'_>,
        attribute: &str,
    ) -> BTreeMap<String, At<String>> {
        let mut map = BTreeMap::new();
        let Some(At { value, span }) = self.value(attribute) else {
            return map;
        };
        let Value::Map(entries) = value else {
            reader.wrong_type(&self.what(attribute), &value, span, "a map");
            return map;
        };
        for (name, Entry { key, item }) in entries {
            let At { value, span } = item;
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number_text(number),
                Value::Bool(truth) => truth.to_string(),
                // As in Terraform: what is null is not there.
                Value::Null => continue,
                other @ (Value::List(_) | Value::Map(_) | Value::Image(_)) => {
                    let what = format!("`{name}` in {}", self.what(attribute));
                    reader.wrong_type(&what, &other, span, "a string");
                    continue;
                }
            };
            map.insert(
                name,
                At {
                    value: text,
                    span: key,
                },
            );
        }
        map
    }

    /// A whole number within `from..=to`.
    pub(crate) fn whole(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        from: u32,
        to: u32,
    ) -> Option<At<u32>> {
        let At { value, span } = self.value(name)?;
        let Value::Number(number) = value else {
            reader.wrong_type(&self.what(name), &value, span, "a number");
            return None;
        };
        let whole = (from..=to).contains(&(number as u32)) && f64::from(number as u32) == number;
        if !whole {
            let expected = format!("a whole number from {from} to {to}");
            reader.bad_value(
                &self.what(name),
                number_text(number),
                span,
                &expected,
                format!("write a number from {from} to {to}"),
            );
            return None;
        }
        Some(At {
            value: number as u32,
            span,
        })
    }

    /// In bytes.
    pub(crate) fn size(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        at_least: u64,
    ) -> Option<At<u64>> {
        let least = units::size_text(at_least);
        self.measured(reader, name, &SIZE, at_least, &least)
    }

    pub(crate) fn duration(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        at_least: Duration,
    ) -> Option<At<Duration>> {
        let least = format!("{}ms", at_least.as_millis());
        self.measured(reader, name, &DURATION, at_least, &least)
    }

    /// `least`: `at_least` as people write it.
    fn measured<T: PartialOrd>(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        measure: &Measure<T>,
        at_least: T,
        least: &str,
    ) -> Option<At<T>> {
        if let At {
            value: Value::Number(number),
            span,
        } = self.value(name)?
        {
            let number = number_text(number);
            let help = format!("write \"{number}{}\"", measure.usual);
            let expected = format!("{} with its unit", measure.what);
            reader.bad_value(&self.what(name), number, span, &expected, help);
            return None;
        }
        let text = self.string(reader, name)?;
        let (expected, help) = match (measure.read)(&text.value) {
            Some(value) if value >= at_least => {
                return Some(At {
                    value,
                    span: text.span,
                });
            }
            Some(_) => (
                format!("at least {least}"),
                format!("write \"{least}\" or more"),
            ),
            None => {
                let expected = format!("a whole number with a unit: {}", measure.units);
                let help = match (measure.nearest)(&text.value) {
                    Some(near) => format!("write \"{near}\""),
                    None => format!("write {} such as {}", measure.what, measure.examples),
                };
                (expected, help)
            }
        };
        let found = format!("`{}`", text.value);
        reader.bad_value(&self.what(name), found, text.span, &expected, help);
        None
    }
}

/// What is written as a number with a unit.
struct Measure<T> {
    what: &'static str,
    /// The unit that a number alone is likely to lack.
    usual: &'static str,
    units: &'static str,
    examples: &'static str,
    read: fn(&str) -> Option<T>,
    nearest: fn(&str) -> Option<String>,
}

const SIZE: Measure<u64> = Measure {
    what: "a size",
    usual: "MiB",
    units: "B, KiB, MiB, GiB, TiB, KB, MB, GB or TB",
    examples: "\"256MiB\"",
    read: units::size,
    nearest: units::nearest_size,
};

const DURATION: Measure<Duration> = Measure {
    what: "a duration",
    usual: "s",
    units: "ms, s, m, h or d",
    examples: "\"500ms\", \"30s\" or \"1h30m\"",
    read: units::duration,
    nearest: units::nearest_duration,
};
