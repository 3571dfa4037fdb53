//! One block (or the whole file): checks its names once, then hands out typed values.

mod values;

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Block, Body, Structure};

use crate::expression::evaluate;
use crate::reader::Reader;
use crate::value::{At, Value};
use crate::{Problem, suggest};

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
        } else if let Some(place) = suggest::right_place(name) {
            place.to_owned()
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
