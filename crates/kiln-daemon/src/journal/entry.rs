//! The body of an entry: canonical JSON, in the format that its row names.

use kiln_model::{Actor, Digest, Entry, ServiceKey, Subject, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The format in which this kiln writes bodies: the JSON of [`kiln_model::Entry`].
pub(super) const BODY_FORMAT: u32 = 2;

/// Format 1: an entry was about one service.
#[derive(Deserialize)]
struct Entry1 {
    at: Timestamp,
    actor: Option<u32>,
    service: ServiceKey,
    event: Value,
    actions: Value,
    notices: Value,
    state: Value,
}

pub(super) fn read<S: DeserializeOwned>(
    format: u32,
    body: &[u8],
) -> Result<Entry<S>, serde_json::Error> {
    if format >= BODY_FORMAT {
        return serde_json::from_slice(body);
    }
    let Entry1 {
        at,
        actor,
        service,
        event,
        actions,
        notices,
        state,
    } = serde_json::from_slice(body)?;
    let fact = kiln_plan::migrate_entry(json!({
        "kind": "service", "event": event, "actions": actions, "notices": notices, "state": state,
    }));
    Ok(Entry {
        at,
        actor: actor.map(Actor::Uid),
        subject: Subject::Service(service),
        fact: serde_json::from_value(fact)?,
    })
}

/// The hash of an entry: of the hash before it and its body.
pub(super) fn chain(before: &Digest, body: &[u8]) -> Digest {
    let mut bytes = Vec::with_capacity(32 + body.len());
    bytes.extend_from_slice(before.as_bytes());
    bytes.extend_from_slice(body);
    Digest::of(&bytes)
}
