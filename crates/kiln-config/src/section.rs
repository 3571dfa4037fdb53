//! One block (or the whole file): checks its names once, then hands out typed values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use hcl_edit::Span;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Block, Body, Structure};

use crate::expression::evaluate;
use crate::reader::Reader;
use crate::value::{At, Entry, Value, number_text};
use crate::{Problem, suggest, units};

/// What a kind of block may hold.
pub(crate) struct Shape {
    pub(crate) attributes: &'static [&'static str],
    pub(crate) blocks: &'static [BlockShape],
    /// Of the language, but of a later version: name and what to do without it.
    pub(crate) later: &'static [(&'static str, &'static str)],
}

pub(crate) struct BlockShape {
    pub(crate) name: &'static str,
    /// What its label is, or `None` for a block without a label.
    pub(crate) label: Option<&'static str>,
}

pub(crate) struct Section<'a> {
    /// As in "`service "api"` has no attribute …".
    pub(crate) place: String,
    /// Of the block's header, for what is missing in it.
    pub(crate) header: Range<usize>,
    attributes: BTreeMap<&'a str, At<Option<Value>>>,
    /// Attributes that whoever reads the section evaluates itself, or that are no values.
    expressions: BTreeMap<&'a str, &'a Expression>,
    blocks: Vec<Labelled<'a>>,
}

pub(crate) struct Labelled<'a> {
    pub(crate) block: &'a Block,
    /// Empty for a block without a label.
    pub(crate) label: At<String>,
    pub(crate) header: Range<usize>,
}

impl<'a> Section<'a> {
    pub(crate) fn read(
        reader: &mut Reader<'_>,
        shape: &Shape,
        body: &'a Body,
        place: String,
        header: Range<usize>,
    ) -> Self {
        Self::read_lazily(reader, shape, body, place, header, &[])
    }

    /// Like [`Section::read`], but does not evaluate what `lazy` names.
    pub(crate) fn read_lazily(
        reader: &mut Reader<'_>,
        shape: &Shape,
        body: &'a Body,
        place: String,
        header: Range<usize>,
        lazy: &[&str],
    ) -> Self {
        let mut section = Self {
            place,
            header,
            attributes: BTreeMap::new(),
            expressions: BTreeMap::new(),
            blocks: Vec::new(),
        };
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => {
                    let name = attribute.key.as_str();
                    let span = attribute.key.span().unwrap_or_default();
                    if !shape.attributes.contains(&name) {
                        section.unknown(reader, shape, name, span, false);
                        continue;
                    }
                    // The parser itself refuses an attribute that is there twice in one file.
                    if section.attributes.contains_key(name) {
                        reader.report(
                            Problem::Duplicate {
                                what: format!("`{name}` of {}", section.place),
                            },
                            span,
                            "once",
                            "remove it from one of the files",
                        );
                        continue;
                    }
                    if lazy.contains(&name) {
                        section.expressions.insert(name, &attribute.value);
                        continue;
                    }
                    let place = attribute.value.span().unwrap_or_else(|| span.clone());
                    let what = format!("`{name}` of {}", section.place);
                    let value =
                        reader.open(what, place, |reader| evaluate(reader, &attribute.value));
                    let span = value.as_ref().map_or(span, |at| at.span.clone());
                    // As in Terraform, null is as if it were not written.
                    if let Some(At {
                        value: Value::Null, ..
                    }) = value
                    {
                        continue;
                    }
                    section.attributes.insert(
                        name,
                        At {
                            value: value.map(|at| at.value),
                            span,
                        },
                    );
                }
                Structure::Block(block) => section.block(reader, shape, block),
            }
        }
        section
    }

    fn block(&mut self, reader: &mut Reader<'_>, shape: &Shape, block: &'a Block) {
        let name = block.ident.as_str();
        let ident = block.ident.span().unwrap_or_default();
        let Some(known) = shape.blocks.iter().find(|known| known.name == name) else {
            self.unknown(reader, shape, name, ident, true);
            return;
        };
        let end = block
            .labels
            .last()
            .and_then(Span::span)
            .map_or(ident.end, |span| span.end);
        let header = ident.start..end;
        let label = match (known.label, block.labels.as_slice()) {
            (None, []) => At {
                value: String::new(),
                span: header.clone(),
            },
            (Some(_), [label]) => At {
                value: label.as_str().to_owned(),
                span: label.span().unwrap_or_default(),
            },
            (None, [label, ..]) => {
                let what = format!("a `{name}` block with a label");
                let span = label.span().unwrap_or(header);
                reader.report(
                    Problem::Contradiction { what },
                    span,
                    "no label",
                    format!("write `{name} {{ … }}`"),
                );
                return;
            }
            (Some(kind), labels) => {
                let what = format!(
                    "a `{name}` block with {} labels instead of one",
                    labels.len()
                );
                let help = format!("write `{name} \"{kind}\" {{ … }}`");
                reader.report(
                    Problem::Contradiction { what },
                    header,
                    format!("one label: the {kind}"),
                    help,
                );
                return;
            }
        };
        let twice = self
            .blocks
            .iter()
            .any(|other| other.block.ident.as_str() == name && other.label.value == label.value);
        // A `copy` is a step, of which there may be many, and so on; anything else is known by its name.
        let many = ["copy", "locals", "validation", "command", "http"];
        if twice && !many.contains(&name) {
            let what = if label.value.is_empty() {
                format!("`{name}`")
            } else {
                format!("`{name} \"{}\"`", label.value)
            };
            reader.report(
                Problem::Duplicate { what },
                header,
                "once",
                "remove one of the two, or rename it",
            );
            return;
        }
        self.blocks.push(Labelled {
            block,
            label,
            header,
        });
    }

    fn unknown(
        &self,
        reader: &mut Reader<'_>,
        shape: &Shape,
        name: &str,
        span: Range<usize>,
        is_block: bool,
    ) {
        if let Some((_, help)) = shape.later.iter().find(|(later, _)| *later == name) {
            let what = format!("`{name}` in {}", self.place);
            reader.report(Problem::Unsupported { what }, span, "not yet there", *help);
            return;
        }
        let (place, name_text) = (self.place.clone(), name.to_owned());
        let blocks = shape.blocks.iter().map(|block| block.name);
        let attributes = shape.attributes.iter().copied();
        let (right, other): (Vec<&str>, Vec<&str>) = if is_block {
            (blocks.collect(), attributes.collect())
        } else {
            (attributes.collect(), blocks.collect())
        };
        // The other form is the likelier mistake when the name itself is right.
        let help = if other.contains(&name) {
            format!("it is {}", written(name, !is_block))
        } else if let Some(near) = suggest::nearest(name, right.iter().copied()) {
            format!("write `{near}`")
        } else if let Some(near) = suggest::nearest(name, other.iter().copied()) {
            format!("there is {}", written(near, !is_block))
        } else if let Some(ours) = suggest::ours(name, right.iter().copied()) {
            format!("kiln's word is `{ours}`")
        } else if let Some(ours) = suggest::ours(name, other.iter().copied()) {
            format!("there is {}", written(ours, !is_block))
        } else {
            "remove it".to_owned()
        };
        let expected = match right.as_slice() {
            [] => "nothing of the kind".to_owned(),
            names => format!("expected {}", one_of(names)),
        };
        let problem = if is_block {
            Problem::UnknownBlock {
                place,
                name: name_text,
            }
        } else {
            Problem::UnknownAttribute {
                place,
                name: name_text,
            }
        };
        reader.report(problem, span, expected, help);
    }

    pub(crate) fn blocks<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Labelled<'a>> {
        self.blocks
            .iter()
            .filter(move |labelled| labelled.block.ident.as_str() == name)
    }

    /// True where the attribute is written, also when its value is wrong.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.attributes.contains_key(name)
    }

    /// One of those that are not evaluated.
    pub(crate) fn expression(&self, name: &str) -> Option<&'a Expression> {
        self.expressions.get(name).copied()
    }

    pub(crate) fn value(&self, name: &str) -> Option<At<Value>> {
        let at = self.attributes.get(name)?;
        Some(At {
            value: at.value.clone()?,
            span: at.span.clone(),
        })
    }

    pub(crate) fn what(&self, name: &str) -> String {
        format!("`{name}` of {}", self.place)
    }

    /// Reports `name` as missing unless it is written.
    pub(crate) fn require(&self, reader: &mut Reader<'_>, name: &str, example: &str) {
        if !self.has(name) && !self.expressions.contains_key(name) {
            let problem = Problem::Missing {
                place: self.place.clone(),
                name: name.to_owned(),
            };
            reader.report(
                problem,
                self.header.clone(),
                format!("expected `{name}` in it"),
                format!("add `{example}`"),
            );
        }
    }

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

    pub(crate) fn size(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        at_least: u64,
    ) -> Option<At<u64>> {
        let text = match self.value(name)? {
            At {
                value: Value::Number(number),
                span,
            } => {
                reader.bad_value(
                    &self.what(name),
                    number_text(number),
                    span,
                    "a size with its unit",
                    format!("write \"{number}MiB\" (or KiB, GiB)"),
                );
                return None;
            }
            _ => self.string(reader, name)?,
        };
        match units::size(&text.value) {
            Some(bytes) if bytes >= at_least => Some(At {
                value: bytes,
                span: text.span,
            }),
            Some(_) => {
                let expected = format!("at least {}KiB", at_least.div_ceil(1024));
                reader.bad_value(
                    &self.what(name),
                    format!("`{}`", text.value),
                    text.span,
                    &expected,
                    "write a larger size, such as \"64MiB\"",
                );
                None
            }
            None => {
                reader.bad_value(
                    &self.what(name),
                    format!("`{}`", text.value),
                    text.span,
                    "a whole number with a unit: B, KiB, MiB, GiB, TiB, KB, MB, GB or TB",
                    match units::nearest_size(&text.value) {
                        Some(near) => format!("write \"{near}\""),
                        None => "write a size such as \"256MiB\"".to_owned(),
                    },
                );
                None
            }
        }
    }

    pub(crate) fn duration(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        at_least: Duration,
    ) -> Option<At<Duration>> {
        let text = match self.value(name)? {
            At {
                value: Value::Number(number),
                span,
            } => {
                reader.bad_value(
                    &self.what(name),
                    number_text(number),
                    span,
                    "a duration with its unit",
                    format!("write \"{number}s\" (or ms, m, h, d)"),
                );
                return None;
            }
            _ => self.string(reader, name)?,
        };
        match units::duration(&text.value) {
            Some(duration) if duration >= at_least => Some(At {
                value: duration,
                span: text.span,
            }),
            Some(_) => {
                let least = format!("{}ms", at_least.as_millis());
                reader.bad_value(
                    &self.what(name),
                    format!("`{}`", text.value),
                    text.span,
                    &format!("at least {least}"),
                    format!("write \"{least}\" or more"),
                );
                None
            }
            None => {
                reader.bad_value(
                    &self.what(name),
                    format!("`{}`", text.value),
                    text.span,
                    "a whole number with a unit: ms, s, m, h or d",
                    match units::nearest_duration(&text.value) {
                        Some(near) => format!("write \"{near}\""),
                        None => {
                            "write a duration such as \"500ms\", \"30s\" or \"1h30m\"".to_owned()
                        }
                    },
                );
                None
            }
        }
    }
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// As in "a block: write `probe { … }`".
fn written(name: &str, as_block: bool) -> String {
    if as_block {
        format!("a block: write `{name} {{ … }}`")
    } else {
        format!("an attribute: write `{name} = …`")
    }
}
