//! `for_each`: one block, an image or a service for each key. `api` with the key `eu` is `api-eu`.

use hcl_edit::Span;
use hcl_edit::structure::Block;

use crate::Problem;
use crate::expression::evaluate;
use crate::reader::Reader;
use crate::section::Labelled;
use crate::value::{At, Value};

/// One round: the key, and what `each.value` is.
#[derive(Clone)]
pub(crate) struct Round {
    pub(crate) key: String,
    value: Value,
}

/// `Some(None)`: the block has no `for_each`.
pub(crate) fn rounds(
    reader: &mut Reader<'_>,
    place: &str,
    block: &Block,
) -> Option<Option<Vec<Round>>> {
    let Some(attribute) = block.body.get_attribute("for_each") else {
        return Some(None);
    };
    let what = format!("`for_each` of {place}");
    let span = attribute.value.span().unwrap_or_default();
    let found = reader.open(&what, span, |reader| evaluate(reader, &attribute.value))?;
    let rounds: Vec<Round> = match found.value {
        Value::Map(entries) => entries
            .into_iter()
            .map(|(key, entry)| Round {
                key,
                value: entry.item.value,
            })
            .collect(),
        Value::List(items) => {
            let mut rounds: Vec<Round> = Vec::new();
            for At { value, span } in items {
                let Value::String(key) = value else {
                    reader.wrong_type(&format!("an item of {what}"), &value, span, "a string");
                    return None;
                };
                if rounds.iter().any(|round| round.key == key) {
                    reader.report(
                        Problem::Duplicate {
                            what: format!("`{key}` in {what}"),
                        },
                        span,
                        "each key once",
                        "remove one of the two, or write `toset(…)` around the list",
                    );
                    return None;
                }
                let value = Value::String(key.clone());
                rounds.push(Round { key, value });
            }
            rounds
        }
        other => {
            reader.wrong_type(&what, &other, found.span, "a map or a list of strings");
            return None;
        }
    };
    Some(Some(rounds))
}

/// The name that a round's image or service has.
pub(crate) fn name(label: &str, key: &str) -> String {
    format!("{label}-{key}")
}

/// Reads a block as what it is in one round: under its own name, with `each`.
pub(crate) fn in_round<'a, T>(
    reader: &mut Reader<'_>,
    labelled: &Labelled<'a>,
    round: Option<&Round>,
    read: impl FnOnce(&mut Reader<'_>, &Labelled<'a>) -> T,
) -> T {
    let Some(Round { key, value }) = round else {
        return read(reader, labelled);
    };
    let own = Labelled {
        block: labelled.block,
        label: At {
            value: name(&labelled.label.value, key),
            span: labelled.label.span.clone(),
        },
        header: labelled.header.clone(),
    };
    let parts = [
        ("key".to_owned(), Value::String(key.clone())),
        ("value".to_owned(), value.clone()),
    ];
    let each = Value::map_at(parts, &labelled.header);
    reader.scope.push(("each".to_owned(), each));
    let result = read(reader, &own);
    reader.scope.pop();
    result
}

/// What `image.NAME` is for each image block.
pub(crate) fn images(reader: &mut Reader<'_>, file: &hcl_edit::structure::Body) {
    let blocks = || {
        file.get_blocks("image")
            .filter_map(|block| Some((block, block.labels.first()?.as_str())))
    };
    // Those without `for_each` first: a `for_each` may go through them.
    for (block, name) in blocks() {
        if !block.body.has_attribute("for_each") {
            let image = Value::Image(name.to_owned());
            reader.images.insert(name.to_owned(), Some(image));
        }
    }
    let mut open: Vec<_> = blocks()
        .filter(|(block, _)| block.body.has_attribute("for_each"))
        .collect();
    // One may go through another, wherever that stands.
    loop {
        let mut waiting = Vec::new();
        let before = open.len();
        for (block, label) in open {
            let place = format!("`image \"{label}\"`");
            let Some(Some(rounds)) = reader.attempt(|reader| rounds(reader, &place, block)) else {
                waiting.push((block, label));
                continue;
            };
            let images = rounds.into_iter().map(|round| {
                let image = Value::Image(name(label, &round.key));
                (round.key, image)
            });
            let span = block.ident.span().unwrap_or_default();
            let value = Value::map_at(images, &span);
            reader.images.insert(label.to_owned(), Some(value));
        }
        if waiting.len() == before {
            open = waiting;
            break;
        }
        open = waiting;
    }
    // What is wrong with these is found again when the image itself is read, unless they only wait for each other.
    for (_, label) in open {
        reader.images.insert(label.to_owned(), None);
    }
}
