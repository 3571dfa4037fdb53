//! Lists and maps.

use std::collections::BTreeMap;

use super::Kind::{Any, List, Map, Number, Text, Texts, Whole};
use super::{Arguments, Fault, Function, LARGEST, fault, function, too_large};
use crate::reader::{Reader, at};
use crate::types::unique;
use crate::value::{At, Entry, Value};

pub(super) const FUNCTIONS: &[Function] = &[
    function("alltrue", &[("list", List)], |_, a| {
        let all = a
            .list(0)
            .iter()
            .all(|item| item.value.truth() == Some(true));
        Ok(Value::Bool(all))
    }),
    function("anytrue", &[("list", List)], |_, a| {
        let any = a
            .list(0)
            .iter()
            .any(|item| item.value.truth() == Some(true));
        Ok(Value::Bool(any))
    }),
    function("chunklist", &[("list", List), ("size", Whole)], |_, a| {
        let chunks = match usize::try_from(a.whole(1)) {
            Err(_) => return fault(1, "a negative number", "0 or more", "write 1 or more"),
            Ok(0) => vec![a.value(0).clone()],
            Ok(size) => a
                .list(0)
                .chunks(size)
                .map(|chunk| Value::List(chunk.to_vec()))
                .collect(),
        };
        Ok(a.list_of(chunks))
    }),
    function("coalesce", &[], coalesce).more("values", Any),
    function("coalescelist", &[], |_, a| {
        let mut lists = (0..a.values.len()).map(|index| a.value(index));
        match lists.find(|list| !matches!(list, Value::List(items) if items.is_empty())) {
            Some(list) => Ok(list.clone()),
            None => fault(
                0,
                "empty like all the others",
                "a list with an item",
                "add a list with an item",
            ),
        }
    })
    .more("lists", List),
    function("compact", &[("list", List)], |_, a| {
        let mut kept = Vec::new();
        for item in a.list(0) {
            match item.value.text() {
                Some(text) if text.is_empty() => {}
                Some(text) => kept.push(at(Value::String(text), item.span.clone())),
                None if item.value == Value::Null => {}
                None => {
                    let found = format!("a list with {}", item.value.kind());
                    return fault(0, found, "a list of strings", "write strings only");
                }
            }
        }
        Ok(Value::List(kept))
    }),
    function("concat", &[], |_, a| {
        let all = (0..a.values.len()).flat_map(|index| a.list(index));
        Ok(Value::List(all.cloned().collect()))
    })
    .more("lists", List),
    function("contains", &[("list", List), ("value", Any)], |_, a| {
        let found = a.list(0).iter().any(|item| item.value.same(a.value(1)));
        Ok(Value::Bool(found))
    }),
    function("distinct", &[("list", List)], |_, a| {
        let mut seen = std::collections::BTreeSet::new();
        let kept = a.list(0).iter().filter(|item| {
            // Of its kind as well: "1" is another than 1.
            seen.insert((item.value.kind(), super::fingerprint(&item.value)))
        });
        Ok(Value::List(kept.cloned().collect()))
    }),
    function("element", &[("list", List), ("index", Whole)], |_, a| {
        let count = a.list(0).len();
        if count == 0 {
            return fault(
                0,
                "an empty list",
                "at least one item",
                "give it a list with an item",
            );
        }
        // Past the end it begins again, on either side.
        let index = a.whole(1).rem_euclid(count as i64);
        Ok(a.list(0)[index as usize].value.clone())
    }),
    function("flatten", &[("list", List)], |_, a| {
        let mut made = Vec::new();
        flatten(a.list(0), &mut made);
        Ok(Value::List(made))
    }),
    function("index", &[("list", List), ("value", Any)], |_, a| {
        match a
            .list(0)
            .iter()
            .position(|item| item.value.same(a.value(1)))
        {
            Some(index) => Ok(Value::Number(index as f64)),
            None => fault(
                1,
                "not in the list",
                "an item of the list",
                "`contains(…)` says whether it is there",
            ),
        }
    }),
    function("keys", &[("map", Map)], |_, a| {
        let keys = a.map(0).into_iter().flat_map(BTreeMap::keys);
        Ok(a.list_of_texts(keys.cloned()))
    }),
    function("length", &[("value", Any)], |_, a| {
        use unicode_segmentation::UnicodeSegmentation;
        let count = match a.value(0) {
            Value::String(text) => text.graphemes(true).count(),
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
            other => {
                return fault(
                    0,
                    other.kind(),
                    "a list, a map or a string",
                    "give it a list, a map or a string",
                );
            }
        };
        Ok(Value::Number(count as f64))
    }),
    function(
        "lookup",
        &[("map", Map), ("key", Text), ("default", Any)],
        |_, a| match a.map(0).and_then(|entries| entries.get(a.text(1))) {
            Some(entry) => Ok(entry.item.value.clone()),
            None if a.given(2) => Ok(a.value(2).clone()),
            None => fault(
                1,
                format!("`{}`, which the map does not have", a.text(1)),
                "a key of the map",
                "give a third argument: what it is then",
            ),
        },
    )
    .optional(1),
    function(
        "matchkeys",
        &[("values", List), ("keys", List), ("search", List)],
        |_, a| {
            if a.list(0).len() != a.list(1).len() {
                return fault(
                    1,
                    "of another length",
                    "as many keys as values",
                    "give lists of one length",
                );
            }
            let kept =
                a.list(0).iter().zip(a.list(1)).filter(|(_, key)| {
                    a.list(2).iter().any(|wanted| wanted.value.same(&key.value))
                });
            Ok(Value::List(kept.map(|(value, _)| value.clone()).collect()))
        },
    ),
    function("merge", &[], |_, a| {
        let mut made = BTreeMap::new();
        for index in 0..a.values.len() {
            match a.value(index) {
                // As in Terraform, where a conditional without a map gives null.
                Value::Null => {}
                Value::Map(entries) => made.extend(entries.clone()),
                other => return fault(index, other.kind(), "a map", "give it maps only"),
            }
        }
        Ok(Value::Map(made))
    })
    .more("maps", Any),
    function("one", &[("list", List)], |_, a| match a.list(0) {
        [] => Ok(Value::Null),
        [only] => Ok(only.value.clone()),
        many => fault(
            0,
            format!("a list of {} items", many.len()),
            "none or one item",
            "choose one with `[0]`",
        ),
    }),
    function("range", &[("number", Number)], range).more("numbers", Number),
    function("reverse", &[("list", List)], |_, a| {
        Ok(Value::List(a.list(0).iter().rev().cloned().collect()))
    }),
    function("setintersection", &[("list", List)], |_, a| {
        let kept = a
            .list(0)
            .iter()
            .filter(|item| (1..a.values.len()).all(|index| has(a.list(index), &item.value)));
        Ok(Value::List(unique(kept.cloned().collect())))
    })
    .more("lists", List),
    function("setproduct", &[], setproduct).more("lists", List),
    function(
        "setsubtract",
        &[("list", List), ("without", List)],
        |_, a| {
            let kept = a.list(0).iter().filter(|item| !has(a.list(1), &item.value));
            Ok(Value::List(unique(kept.cloned().collect())))
        },
    ),
    function("setunion", &[], |_, a| {
        let all = (0..a.values.len()).flat_map(|index| a.list(index));
        Ok(Value::List(unique(all.cloned().collect())))
    })
    .more("lists", List),
    function(
        "slice",
        &[("list", List), ("start", Whole), ("end", Whole)],
        |_, a| {
            let (list, start, end) = (a.list(0), a.whole(1), a.whole(2));
            let count = list.len() as i64;
            if !(0..=count).contains(&end) {
                let expected = format!("a number from 0 to {count}");
                return fault(
                    2,
                    end.to_string(),
                    expected,
                    "the end is the index behind the last item",
                );
            }
            if !(0..=end).contains(&start) {
                let expected = format!("a number from 0 to {end}");
                return fault(
                    1,
                    start.to_string(),
                    expected,
                    "the start is not behind the end",
                );
            }
            Ok(Value::List(list[start as usize..end as usize].to_vec()))
        },
    ),
    function("sort", &[("list", Texts)], |_, a| {
        let mut texts = a.texts(0);
        texts.sort_unstable();
        Ok(a.list_of_texts(texts))
    }),
    function("transpose", &[("map", Map)], |_, a| {
        let mut made: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (key, entry) in a.map(0).into_iter().flatten() {
            let Value::List(items) = &entry.item.value else {
                return fault(
                    0,
                    "a map with something else than lists",
                    "a map of lists of strings",
                    "write lists of strings",
                );
            };
            for item in items {
                let Some(text) = item.value.text() else {
                    return fault(
                        0,
                        "a map with lists of something else",
                        "a map of lists of strings",
                        "write lists of strings",
                    );
                };
                made.entry(text)
                    .or_default()
                    .push(Value::text_of(key.clone()));
            }
        }
        let lists = made.into_iter().map(|(key, list)| (key, a.list_of(list)));
        Ok(a.map_of(lists))
    }),
    function("values", &[("map", Map)], |_, a| {
        let values = a.map(0).into_iter().flat_map(BTreeMap::values);
        Ok(Value::List(
            values.map(|entry| entry.item.clone()).collect(),
        ))
    }),
    function("zipmap", &[("keys", Texts), ("values", List)], |_, a| {
        if a.list(0).len() != a.list(1).len() {
            return fault(
                1,
                "of another length",
                "as many values as keys",
                "give lists of one length",
            );
        }
        let mut made = BTreeMap::new();
        for (key, item) in a.texts(0).into_iter().zip(a.list(1)) {
            let entry = Entry {
                key: item.span.clone(),
                item: item.clone(),
            };
            made.insert(key.to_owned(), entry);
        }
        Ok(Value::Map(made))
    }),
];

fn has(list: &[At<Value>], value: &Value) -> bool {
    list.iter().any(|item| item.value.same(value))
}

fn coalesce(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let mut values = (0..a.values.len()).map(|index| a.value(index));
    let empty = |value: &&Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Map(_) | Value::Image(_) => {
            false
        }
    };
    match values.find(|value| !empty(value)) {
        Some(value) => Ok(value.clone()),
        None => fault(
            0,
            "null or empty like all the others",
            "a value that is there",
            "add what it is then as the last argument",
        ),
    }
}

fn flatten(items: &[At<Value>], made: &mut Vec<At<Value>>) {
    for item in items {
        match &item.value {
            Value::List(inner) => flatten(inner, made),
            _ => made.push(item.clone()),
        }
    }
}

/// Terraform's bound as well.
const LONGEST_RANGE: usize = 1024;

fn range(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let (start, limit, step) = match a.values.len() {
        1 => (0.0, a.number(0), None),
        2 => (a.number(0), a.number(1), None),
        3 => (a.number(0), a.number(1), Some(a.number(2))),
        _ => {
            return fault(
                3,
                "one too many",
                "at most start, limit and step",
                "write `range(start, limit, step)`",
            );
        }
    };
    let step = step.unwrap_or(if limit < start { -1.0 } else { 1.0 });
    if step == 0.0 || (limit > start) != (step > 0.0) && limit != start {
        let expected = "a step from the start towards the limit";
        return fault(
            a.values.len() - 1,
            "a step that never arrives",
            expected,
            "write 1 or -1",
        );
    }
    let mut numbers = Vec::new();
    let mut next = start;
    while if step > 0.0 {
        next < limit
    } else {
        next > limit
    } {
        if numbers.len() >= LONGEST_RANGE {
            return fault(
                a.values.len() - 1,
                "what makes too many numbers",
                "at most 1024 numbers",
                "make the range shorter",
            );
        }
        numbers.push(Value::Number(next));
        next = start + step * numbers.len() as f64;
    }
    Ok(a.list_of(numbers))
}

fn setproduct(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    if a.values.len() < 2 {
        return fault(
            0,
            "alone",
            "at least two lists",
            "write `setproduct(list, list)`",
        );
    }
    let lists = (0..a.values.len()).map(|index| a.list(index));
    let count = lists
        .clone()
        .fold(lists.len(), |count, list| count.saturating_mul(list.len()));
    if count > LARGEST / 16 {
        return too_large(0);
    }
    let mut rows: Vec<Vec<At<Value>>> = vec![Vec::new()];
    for list in lists {
        rows = rows
            .iter()
            .flat_map(|row| {
                list.iter().map(move |item| {
                    let mut row = row.clone();
                    row.push(item.clone());
                    row
                })
            })
            .collect();
    }
    Ok(a.list_of(rows.into_iter().map(Value::List)))
}
