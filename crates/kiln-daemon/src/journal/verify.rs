//! Reads the chain of hashes and finds what was changed.

use std::collections::BTreeMap;

use kiln_model::{Digest, Fact, ServiceKey, Snapshot, StateId, Subject};
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::entry;
use super::error::JournalError;

/// The newest snapshot, with the number of its entry.
pub(super) fn newest_snapshot(
    db: &Connection,
) -> Result<Option<(StateId, Snapshot)>, JournalError> {
    let row = db
        .query_row(
            "SELECT state, format, body FROM entry WHERE kind = 'snapshot' ORDER BY state DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?)),
        )
        .optional()
        .map_err(JournalError::Read)?;
    let Some((state, format, body)) = row else {
        return Ok(None);
    };
    let state = StateId(state);
    let entry = entry::read::<Value>(format, &body)
        .map_err(|source| JournalError::Entry { state, source })?;
    match entry.fact {
        Fact::Snapshot(snapshot) => Ok(Some((state, snapshot))),
        Fact::Service(_) | Fact::Unknown(_) => Err(JournalError::Index { state }),
    }
}

/// Where the chain begins: after the last folded entry, from its hash.
pub(super) fn start(db: &Connection) -> Result<(StateId, Digest), JournalError> {
    Ok(match newest_snapshot(db)? {
        Some((_, snapshot)) => (snapshot.up_to, snapshot.hash),
        None => (StateId(0), Digest::from_sha256([0; 32])),
    })
}

/// Follows the chain from `start`, up to `limit` entries. The last good entry and its hash.
pub(super) fn follow(
    db: &Connection,
    start: (StateId, Digest),
    limit: u64,
) -> Result<(StateId, Digest), JournalError> {
    let (mut last, mut hash) = start;
    let mut select = db
        .prepare(
            "SELECT state, at, subject, kind, format, body, hash FROM entry WHERE state > ?1 ORDER BY state LIMIT ?2",
        )
        .map_err(JournalError::Read)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = select
        .query(rusqlite::params![last.0, limit])
        .map_err(JournalError::Read)?;
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let expected = last.next();
        let state = StateId(row.get(0).map_err(JournalError::Read)?);
        let body: Vec<u8> = row.get(5).map_err(JournalError::Read)?;
        let written: [u8; 32] = row.get(6).map_err(JournalError::Read)?;
        hash = entry::chain(&hash, &body);
        if state != expected || hash.as_bytes() != &written {
            return Err(JournalError::Broken { state: expected });
        }
        last = state;
        let entry = entry::read::<Value>(row.get(4).map_err(JournalError::Read)?, &body)
            .map_err(|source| JournalError::Entry { state, source })?;
        let at: u64 = row.get(1).map_err(JournalError::Read)?;
        let subject: String = row.get(2).map_err(JournalError::Read)?;
        let kind: String = row.get(3).map_err(JournalError::Read)?;
        if entry.at.0 != at || entry.subject != Subject::from(subject) || entry.fact.kind() != kind
        {
            return Err(JournalError::Index { state });
        }
    }
    Ok((last, hash))
}

/// The services whose stored state is not the one that their last entry led to.
pub(super) fn changed_states(db: &Connection) -> Result<Vec<String>, JournalError> {
    let snapshot = newest_snapshot(db)?;
    let mut newest = db
        .prepare(
            "SELECT state, format, body FROM entry WHERE subject = ?1 AND kind = 'service' ORDER BY state DESC LIMIT 1",
        )
        .map_err(JournalError::Read)?;
    let mut changed = Vec::new();
    for (key, digest) in state_digests(db)? {
        let row = newest
            .query_row([Subject::Service(key.clone()).to_string()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?))
            })
            .optional()
            .map_err(JournalError::Read)?;
        let expected = match row {
            Some((state, format, body)) => {
                let state = StateId(state);
                let entry = entry::read::<Value>(format, &body)
                    .map_err(|source| JournalError::Entry { state, source })?;
                match entry.fact {
                    Fact::Service(step) => {
                        let text = step.get("state").and_then(Value::as_str);
                        text.and_then(|text| text.parse().ok())
                    }
                    Fact::Snapshot(_) | Fact::Unknown(_) => None,
                }
            }
            // All its entries were folded.
            None => snapshot
                .as_ref()
                .and_then(|(_, snapshot)| snapshot.states.get(&key).copied()),
        };
        if expected != Some(digest) {
            changed.push(key.to_string());
        }
    }
    Ok(changed)
}

/// The SHA-256 of each stored state.
pub(super) fn state_digests(db: &Connection) -> Result<BTreeMap<ServiceKey, Digest>, JournalError> {
    let mut select = db
        .prepare("SELECT key, state FROM service")
        .map_err(JournalError::Read)?;
    let mut rows = select.query([]).map_err(JournalError::Read)?;
    let mut digests = BTreeMap::new();
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let key: String = row.get(0).map_err(JournalError::Read)?;
        let state: Vec<u8> = row.get(1).map_err(JournalError::Read)?;
        // A key that is none was put there by somebody else.
        let key = ServiceKey::try_from(key).map_err(|error| JournalError::StateChanged {
            service: error.text,
        })?;
        digests.insert(key, Digest::of(&state));
    }
    Ok(digests)
}
