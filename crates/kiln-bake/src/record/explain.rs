//! Why a step was carried out and not taken from the cache: which of its inputs are not those of the last bake of the image.
//!
//! What a step's key is made of is kept under the key when the step is carried out, and for each image the keys of its last bake.

use std::collections::{BTreeMap, BTreeSet};

use kiln_model::{CanonicalError, Digest, canonical_json};
use kiln_oci::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::BakeError;
use crate::leaks;
use crate::progress::StepReport;

/// Of one step; more are counted.
const REASONS: usize = 20;
/// Of one value.
const SHOWN: usize = 120;
/// A step of the last bake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    name: String,
    key: Digest,
}

fn inputs_key(key: &Digest) -> Result<Digest, CanonicalError> {
    canonical_json(&("inputs", key)).map(|json| Digest::of(&json))
}

/// Keeps what `key` is made of.
pub(crate) fn keep(
    store: &Store,
    key: &Digest,
    below: &[Digest],
    date: i64,
    inputs: &impl Serialize,
) -> Result<(), BakeError> {
    let mut record = json!({"below": below, "date": date, "inputs": inputs});
    for (_, step) in record["inputs"].as_object_mut().into_iter().flatten() {
        for pair in step["env"].as_array_mut().into_iter().flatten() {
            conceal(pair)?;
        }
    }
    let record = canonical_json(&record)?;
    Ok(store.cache_put(&inputs_key(key)?, &record)?)
}

/// Of a variable that may be secret, only what tells one value from another is kept.
fn conceal(pair: &mut Value) -> Result<(), CanonicalError> {
    if let Value::Array(parts) = pair
        && let [Value::String(name), value] = parts.as_mut_slice()
        && leaks::is_secret(name, value.as_str().unwrap_or_default())
    {
        *value = json!(Digest::of(&canonical_json(value)?));
    }
    Ok(())
}

/// Says of each step that was carried out why, and remembers these as the last bake of `image`.
pub(crate) fn fill(store: &Store, image: &str, steps: &mut [StepReport]) -> Result<(), BakeError> {
    let key = Digest::of(&canonical_json(&("last", image))?);
    let before = store.cache_get(&key).unwrap_or_default();
    let before: Vec<Last> = serde_json::from_slice(&before).unwrap_or_default();
    let now: Vec<Last> = steps
        .iter()
        .filter_map(|step| {
            Some(Last {
                name: step.name.clone(),
                key: step.key?,
            })
        })
        .collect();
    let mut anew: Option<String> = None;
    for step in steps.iter_mut() {
        let Some(key) = step.key.filter(|_| !step.cached) else {
            continue;
        };
        let this = Last {
            name: step.name.clone(),
            key,
        };
        step.reasons = why(store, &before, &now, &this, anew.as_deref())?;
        anew.get_or_insert_with(|| step.name.clone());
    }
    if now != before {
        store.cache_put(&key, &canonical_json(&now)?)?;
    }
    Ok(())
}

fn kind(name: &str) -> &str {
    name.split(' ').next().unwrap_or_default()
}

/// The step that `this` was in the last bake: of the same name, or the same in number of those of its kind that have another now.
fn was<'a>(before: &'a [Last], now: &[Last], this: &Last) -> Option<&'a Last> {
    if let Some(same) = before.iter().find(|step| step.name == this.name) {
        return Some(same);
    }
    let others = |all: &[Last], but: &[Last]| -> Vec<usize> {
        let mut left = Vec::new();
        for (index, step) in all.iter().enumerate() {
            let is_there = but.iter().any(|other| other.name == step.name);
            if kind(&step.name) == kind(&this.name) && !is_there {
                left.push(index);
            }
        }
        left
    };
    let number = others(now, before)
        .iter()
        .position(|index| now[*index] == *this)?;
    others(before, now).get(number).map(|index| &before[*index])
}

fn why(
    store: &Store,
    before: &[Last],
    now: &[Last],
    this: &Last,
    anew: Option<&str>,
) -> Result<Vec<String>, BakeError> {
    let one = |text: &str| Ok(vec![text.to_owned()]);
    if before.is_empty() {
        return one("nothing was baked under this name before");
    }
    let Some(was) = was(before, now, this) else {
        return one("a new step");
    };
    if was.key == this.key {
        return one(
            "nothing of it changed: its layer is in the cache no more, or every step was to be done anew",
        );
    }
    let record = |key: &Digest| -> Result<Option<Value>, BakeError> {
        let bytes = store.cache_get(&inputs_key(key)?);
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    };
    let (Some(old), Some(new)) = (record(&was.key)?, record(&this.key)?) else {
        return one("what it was made of before is not known any more");
    };
    let mut reasons = differences(&this.name, &old, &new);
    if reasons.is_empty() {
        reasons.push(match anew {
            _ if old["below"] == new["below"] => "another version of kiln".to_owned(),
            Some(name) => format!("it stands on `{name}`, which was done anew"),
            None => "what it stands on is another".to_owned(),
        });
    }
    if reasons.len() > REASONS {
        let more = reasons.len() - REASONS;
        reasons.truncate(REASONS);
        reasons.push(format!("and {more} more"));
    }
    Ok(reasons)
}

/// What of a step's own inputs is not as it was.
fn differences(name: &str, old: &Value, new: &Value) -> Vec<String> {
    let mut reasons = Vec::new();
    let whole = |value: &Value| -> Option<(String, Value)> {
        let (kind, fields) = value["inputs"].as_object()?.iter().next()?;
        Some((kind.clone(), fields.clone()))
    };
    let (Some((old_kind, old_fields)), Some((new_kind, new_fields))) = (whole(old), whole(new))
    else {
        return reasons;
    };
    if old_kind != new_kind {
        return vec![format!("it was a step of another kind ({old_kind})")];
    }
    let (old_fields, new_fields) = (flat(&old_fields), flat(&new_fields));
    let source = new_fields.get("to").and_then(Value::as_str).and_then(|to| {
        let rest = name.strip_prefix("copy ")?;
        rest.strip_suffix(to).map(str::trim_end)
    });
    let names: BTreeSet<&String> = old_fields.keys().chain(new_fields.keys()).collect();
    for field in names {
        let (old, new) = (
            old_fields.get(field).unwrap_or(&Value::Null),
            new_fields.get(field).unwrap_or(&Value::Null),
        );
        if old == new {
            continue;
        }
        match (field.as_str(), keyed(old), keyed(new)) {
            ("layers", ..) => {
                reasons.push("the stage or image that it takes from is another".to_owned())
            }
            (_, Some(old), Some(new)) => items(field, source, &old, &new, &mut reasons),
            _ if is_secret("", old) || is_secret("", new) => {
                reasons.push(format!("{} changed", label(field)))
            }
            _ => reasons.push(format!(
                "{} changed: {} → {}",
                label(field),
                shown(old),
                shown(new)
            )),
        }
    }
    if old["date"] != new["date"] {
        reasons.push(format!(
            "the date of its files changed: {} → {}",
            old["date"], new["date"]
        ));
    }
    reasons
}

/// The fields, and those of the fields that are maps themselves.
fn flat(fields: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (name, value) in fields.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => all.extend(flat(value)),
            // The sources of a COPY, each with what is in it.
            Value::Array(sources)
                if name == "files" && sources.iter().all(|one| one["entries"].is_array()) =>
            {
                let entries = sources.iter().filter_map(|one| one["entries"].as_array());
                all.insert(name.clone(), entries.flatten().cloned().collect());
            }
            value => {
                all.insert(name.clone(), value.clone());
            }
        }
    }
    all
}

/// A list of which each item has a name: a path, or the first of its values.
fn keyed(value: &Value) -> Option<BTreeMap<String, Value>> {
    let items = value.as_array()?;
    items
        .iter()
        .map(|item| match item {
            Value::Array(parts) => {
                let (name, rest) = parts.split_first()?;
                Some((
                    name.as_str()?.to_owned(),
                    rest.first().cloned().unwrap_or_default(),
                ))
            }
            Value::Object(fields) => {
                let name = fields.get("path").or_else(|| fields.get("name"))?;
                Some((text_of(name)?, item.clone()))
            }
            _ => None,
        })
        .collect()
}

/// A path is kept as its bytes where it may be no text.
fn text_of(name: &Value) -> Option<String> {
    let Some(bytes) = name.as_array() else {
        return name.as_str().map(str::to_owned);
    };
    let byte = |value: &Value| u8::try_from(value.as_u64()?).ok();
    let bytes: Vec<u8> = bytes.iter().map(byte).collect::<Option<_>>()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn items(
    field: &str,
    source: Option<&str>,
    old: &BTreeMap<String, Value>,
    new: &BTreeMap<String, Value>,
    reasons: &mut Vec<String>,
) {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
    {
        let what = match (field, source) {
            ("files", Some(source)) if name.is_empty() => source.to_owned(),
            ("files", Some(source)) => format!("{}/{name}", source.trim_end_matches('/')),
            ("files", None) => name.clone(),
            ("packages", _) => format!("package {name}"),
            ("users", _) => format!("user {name}"),
            (field, _) => format!("{} {name}", label(field)),
        };
        let (old, new) = (old.get(name), new.get(name));
        let is_secret = |value: Option<&Value>| value.is_some_and(|value| is_secret(name, value));
        let says = field == "packages" || field == "env" && !is_secret(old) && !is_secret(new);
        reasons.push(match (old, new) {
            (Some(old), Some(new)) if field == "packages" && says => {
                format!("{what} {} → {}", shown(old), shown(new))
            }
            (Some(old), Some(new)) if says => {
                format!("{what} changed: {} → {}", shown(old), shown(new))
            }
            (None, Some(new)) if says => format!("{what} added: {}", shown(new)),
            (None, _) => format!("{what} added"),
            (_, None) => format!("{what} removed"),
            _ => format!("{what} changed"),
        });
    }
}

fn label(field: &str) -> &str {
    match field {
        "argv" => "command",
        "to" => "destination",
        other => other,
    }
}

fn is_secret(name: &str, value: &Value) -> bool {
    leaks::is_secret(name, &text(value))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(words) if words.iter().all(Value::is_string) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            words.join(" ")
        }
        other => other.to_string(),
    }
}

fn shown(value: &Value) -> String {
    let text = text(value);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_input_is_told_by_its_name() {
        let record =
            |inputs: Value, date: i64| json!({"below": [], "date": date, "inputs": inputs});
        let file = |path: &str, digest: &str| json!({"path": path, "mode": 420, "kind": {"file": {"digest": digest}}});
        let told = |name: &str, old: Value, new: Value| {
            differences(name, &record(old, 1), &record(new, 1))
        };
        let copy =
            |files: Value| json!({"copy": {"to": "/opt/app", "owner": null, "files": files}});
        assert_eq!(
            told(
                "copy app/ /opt/app",
                copy(json!([
                    file("", "a"),
                    file("gone", "a"),
                    file("server.py", "a")
                ])),
                copy(json!([
                    file("", "a"),
                    file("new", "a"),
                    file("server.py", "b")
                ])),
            ),
            ["app/gone removed", "app/new added", "app/server.py changed"]
        );
        let debian =
            |packages: Value| json!({"debian": {"suite": "bookworm", "packages": packages}});
        assert_eq!(
            told(
                "debian bookworm",
                debian(json!([
                    ["python3", "3.11.2-1", "sha256:a"],
                    ["gone", "1", "sha256:b"]
                ])),
                debian(json!([["python3", "3.11.2-2", "sha256:c"]])),
            ),
            [
                "package gone removed",
                "package python3 3.11.2-1 → 3.11.2-2"
            ]
        );
        let run = |argv: Value, env: Value| json!({"run": {"argv": argv, "env": env, "user": ""}});
        assert_eq!(
            told(
                "RUN make",
                run(
                    json!(["sh", "-c", "make"]),
                    json!([["A", "1"], ["API_TOKEN", "x"], ["DB_URL", "http://h/x"]])
                ),
                run(
                    json!(["sh", "-c", "make all"]),
                    json!([
                        ["A", "2"],
                        ["API_TOKEN", "y"],
                        ["B", ""],
                        ["DB_URL", "http://u:p@h/x"]
                    ])
                ),
            ),
            [
                "command changed: sh -c make → sh -c make all",
                "env A changed: 1 → 2",
                "env API_TOKEN changed",
                "env B added: ",
                "env DB_URL changed",
            ]
        );
        assert_eq!(
            told(
                "RUN login",
                run(json!(["sh", "-c", "login --token=a"]), json!([])),
                run(json!(["sh", "-c", "login --token=b"]), json!([])),
            ),
            ["command changed"]
        );
        let taken = |path: Value, digest: &str| json!({"name": "app", "is_folder": true, "entries": [{"path": path, "kind": {"file": {"digest": digest}}}]});
        let files = |first: &str, second: &str| json!({"copy": {"to": "/", "origin": {"files": [taken(json!("a"), first), taken(json!(b"b"), second)]}}});
        assert_eq!(
            told("COPY a b /", files("1", "1"), files("1", "2")),
            ["b changed"]
        );
        let from = |layer: &str| json!({"copy": {"origin": {"layers": {"layers": [layer], "sources": ["/x"]}}}});
        assert_eq!(
            told("COPY --from=a /x /", from("a"), from("b")),
            ["the stage or image that it takes from is another"]
        );
        let dates = differences(
            "x",
            &record(debian(json!([])), 1),
            &record(debian(json!([])), 2),
        );
        assert_eq!(dates, ["the date of its files changed: 1 → 2"]);
    }

    #[test]
    fn a_step_is_that_of_the_last_bake_by_its_name_or_its_number() {
        let steps = |names: &[&str]| -> Vec<Last> {
            let step = |(number, name): (usize, &&str)| Last {
                name: (*name).to_owned(),
                key: Digest::of(format!("{number}{name}").as_bytes()),
            };
            names.iter().enumerate().map(step).collect()
        };
        let before = steps(&["debian bookworm", "run a", "run b", "run c"]);
        let now = steps(&["debian bookworm", "run b", "run x", "run y", "run z"]);
        let found = |index: usize| was(&before, &now, &now[index]).map(|step| step.name.as_str());
        assert_eq!(found(1), Some("run b"));
        assert_eq!(
            [found(2), found(3), found(4)],
            [Some("run a"), Some("run c"), None]
        );
    }
}
