//! States and journal entries as older kilns wrote them, brought to the present form one format at a time.
//!
//! A format is raised where a member changes its name or meaning. A new member needs none: it has a default.

use serde_json::{Map, Value, json};

/// A journal entry's event, actions and notices in the present format: `entry` has them as members of these names. What is
/// in the present format already stays as it is.
pub fn migrate_entry(mut entry: Value) -> Value {
    if let Some(event) = entry.get_mut("event") {
        event_to_2(event);
    }
    for action in members(&mut entry, "actions") {
        route_to_2(action);
    }
    for notice in members(&mut entry, "notices") {
        notice_to_2(notice);
    }
    entry
}

fn members<'a>(value: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    let array = value.get_mut(name).and_then(Value::as_array_mut);
    array.into_iter().flatten()
}

fn object<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    value.get_mut(name)?.as_object_mut()
}

fn words(text: &Value) -> Value {
    match text {
        Value::String(text) => json!({ "kind": "words", "text": text }),
        other => other.clone(),
    }
}

/// `active: [release, instances]` becomes a set with all the traffic.
fn route_to_2(route: &mut Value) {
    let Some(route) = route.as_object_mut() else {
        return;
    };
    let Some(active) = route.remove("active") else {
        return;
    };
    let sets = match active.as_array().map(Vec::as_slice) {
        Some([release, instances]) => {
            json!([{ "release": release, "share": 1000, "instances": instances }])
        }
        Some(_) | None => json!([]),
    };
    route.insert("sets".to_owned(), sets);
}

fn end_to_2(end: &mut Value) {
    if let Some(end) = end.as_object_mut()
        && let Some(reason) = end.remove("reason")
    {
        end.insert("why".to_owned(), words(&reason));
    }
}

fn event_to_2(event: &mut Value) {
    let kind = event
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let (probe, passes) = match kind {
        "ready" => ("ready", true),
        "unready" => ("ready", false),
        "not_live" => ("live", false),
        _ => return,
    };
    if let Some(event) = event.as_object_mut() {
        event.insert("kind".to_owned(), json!("probed"));
        event.insert("probe".to_owned(), json!(probe));
        event.insert("passes".to_owned(), json!(passes));
    }
}

fn notice_to_2(notice: &mut Value) {
    let kind = notice
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match kind {
        "phase_entered" => {
            if let Some(notice) = notice
                .as_object_mut()
                .filter(|notice| !notice.contains_key("wait"))
            {
                let phase = notice.remove("phase").unwrap_or_default();
                let on = words(&notice.remove("waits_on").unwrap_or_default());
                notice.insert("wait".to_owned(), json!({ "phase": phase, "on": on }));
            }
        }
        "instance_failed" => {
            if let Some(notice) = notice.as_object_mut()
                && let Some(reason) = notice.remove("reason")
            {
                notice.insert("end".to_owned(), words(&reason));
            }
        }
        "rollout_ended" => {
            if let Some(end) = notice.get_mut("end") {
                end_to_2(end);
            }
        }
        _ => {}
    }
}

/// Rollouts become rows of stages, routes carry weighted sets, reasons are facts, and instances have endpoints.
pub(crate) fn state_to_2(state: &mut Value) {
    let releases = state.get("releases").cloned().unwrap_or_default();
    let policy = state.get("policy").cloned().unwrap_or_default();
    if let Some(instances) = object(state, "instances") {
        for instance in instances.values_mut() {
            instance_to_2(instance, &releases);
        }
    }
    if let Some(end) = state.get_mut("last_rollout") {
        end_to_2(end);
    }
    for action in object(state, "outstanding")
        .into_iter()
        .flat_map(|all| all.values_mut())
    {
        route_to_2(action);
    }
    if let Some(route) = state.get_mut("route") {
        route_to_2(route);
        if let (Some(route), Some(policy)) = (route.as_object_mut(), policy.as_object()) {
            let of = |name: &str| policy.get(name).cloned().unwrap_or_default();
            route.insert("listen".to_owned(), of("listen"));
            route.insert("drain_deadline".to_owned(), of("drain_deadline"));
        }
    }
    if let Some(rollout) = object(state, "rollout") {
        rollout_to_2(rollout, &policy);
    }
}

fn instance_to_2(instance: &mut Value, releases: &Value) {
    let Some(instance) = instance.as_object_mut() else {
        return;
    };
    let release = instance
        .get("release")
        .map(Value::to_string)
        .unwrap_or_default();
    let port = &releases[&release]["release"]["port"];
    let address = instance.remove("address").unwrap_or_default();
    let endpoint = match (address.as_str(), port.as_u64()) {
        (Some(address), Some(port)) => json!(format!("{address}:{port}")),
        _ => Value::Null,
    };
    instance.insert("endpoint".to_owned(), endpoint);
}

/// The phases were the gates of blue-green's two stages.
fn rollout_to_2(rollout: &mut Map<String, Value>, policy: &Value) {
    let phase = rollout.remove("phase").unwrap_or_default();
    let warm = rollout.get("warm") == Some(&Value::Bool(true));
    let soak = if warm {
        json!(0)
    } else {
        policy["soak"].clone()
    };
    let within = &policy["progress_deadline"];
    let stages = json!([
        {
            "from": 1000, "to": 1000, "traffic": 0,
            "gates": [{ "kind": "soaked", "soak": soak, "within": within }],
        },
        {
            "from": 1000, "to": 1000, "traffic": 1000,
            "gates": [
                { "kind": "routed" },
                { "kind": "watched", "span": soak, "within": within },
            ],
        },
    ]);
    let (stage, gate, direction, deadline) = match phase["phase"].as_str().unwrap_or_default() {
        "switching" => (1, 0, json!({ "kind": "forward" }), Value::Null),
        "watching" => (1, 1, json!({ "kind": "forward" }), phase["until"].clone()),
        "returning" => {
            let why = match phase["failed"] {
                Value::Bool(false) => json!({ "kind": "asked" }),
                _ => words(&phase["reason"]),
            };
            (0, 0, json!({ "kind": "back", "why": why }), Value::Null)
        }
        _ => (
            0,
            0,
            json!({ "kind": "forward" }),
            phase["deadline"].clone(),
        ),
    };
    for (name, value) in [
        ("stages", stages),
        ("stage", json!(stage)),
        ("gate", json!(gate)),
        ("direction", direction),
        ("deadline", deadline),
        ("from_policy", Value::Null),
    ] {
        rollout.insert(name.to_owned(), value);
    }
}
