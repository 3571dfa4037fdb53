//! The journal: the append-only record of all that happened, and the state it led to.
//!
//! One transaction holds the time, the event, the actions with their ids, the notices and the new state of
//! the service. Entries are chained: each names the hash of the one before, so that a changed or missing
//! entry is found by reading from the start.
//!
//! SQLite in WAL mode with `synchronous = FULL`: one `fdatasync` of the log a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_model::{Digest, ServiceKey, StateId, Timestamp, canonical_json};
use kiln_plan::{Action, Event, Notice, Service};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};

const SCHEMA_VERSION: i64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal {path} can't be opened")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the journal {path} has format {found}, and this kiln knows format {SCHEMA_VERSION}: use the kiln that wrote it, or a newer one"
    )]
    Version { path: PathBuf, found: i64 },
    #[error("the journal can't be written: free space on its disk, or make it writable")]
    Write(#[source] rusqlite::Error),
    #[error("the journal can't be read")]
    Read(#[source] rusqlite::Error),
    #[error("entry {state} of the journal can't be understood")]
    Entry {
        state: StateId,
        #[source]
        source: serde_json::Error,
    },
    #[error("the state of {service} in the journal can't be understood")]
    State {
        service: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("an event has no canonical form")]
    Canonical(#[from] kiln_model::CanonicalError),
    #[error("the journal was changed: entry {state} does not follow from the one before it")]
    Broken { state: StateId },
}

/// What happened to one service at one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    /// The uid that asked; `None`: kiln itself.
    pub actor: Option<u32>,
    pub service: ServiceKey,
    pub event: Event,
    pub actions: Vec<Action>,
    pub notices: Vec<Notice>,
    /// The hash of the new state's JSON.
    pub state: Digest,
}

pub(crate) struct Journal {
    db: Connection,
    last: StateId,
    last_hash: Digest,
}

/// What a controller starts from.
pub(crate) struct Recovered {
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// The last timestamp journalled.
    pub(crate) at: Timestamp,
    /// The entry that last changed a route: the generation of the proxy's table.
    pub(crate) table: StateId,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<(Self, Recovered), JournalError> {
        let open = |source| JournalError::Open {
            path: path.to_owned(),
            source,
        };
        let db = Connection::open(path).map_err(open)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000;",
        )
        .map_err(open)?;
        let found: i64 = db
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(open)?;
        match found {
            0 => db
                .execute_batch(&format!(
                    "BEGIN;
                     CREATE TABLE entry (
                         state   INTEGER PRIMARY KEY,
                         at      INTEGER NOT NULL,
                         service TEXT NOT NULL,
                         body    BLOB NOT NULL,
                         hash    BLOB NOT NULL
                     );
                     CREATE TABLE service (
                         key   TEXT PRIMARY KEY,
                         state BLOB NOT NULL
                     );
                     CREATE TABLE routing (one INTEGER PRIMARY KEY CHECK (one = 1), state INTEGER NOT NULL);
                     INSERT INTO routing VALUES (1, 0);
                     PRAGMA user_version = {SCHEMA_VERSION};
                     COMMIT;"
                ))
                .map_err(open)?,
            SCHEMA_VERSION => {}
            found => return Err(JournalError::Version { path: path.to_owned(), found }),
        }
        let last = db
            .query_row(
                "SELECT state, at, hash FROM entry ORDER BY state DESC LIMIT 1",
                [],
                |row| {
                    Ok((
                        row.get::<_, u64>(0)?,
                        row.get::<_, u64>(1)?,
                        row.get::<_, [u8; 32]>(2)?,
                    ))
                },
            )
            .optional()
            .map_err(JournalError::Read)?;
        let (last, at, last_hash) = last.unwrap_or((0, 0, [0; 32]));
        let table: u64 = db
            .query_row("SELECT state FROM routing", [], |row| row.get(0))
            .map_err(JournalError::Read)?;
        let services = read_services(&db)?;
        let journal = Self {
            db,
            last: StateId(last),
            last_hash: Digest::from_sha256(last_hash),
        };
        Ok((
            journal,
            Recovered {
                services,
                at: Timestamp(at),
                table: StateId(table),
            },
        ))
    }

    /// The entry last written; 0 before the first.
    pub(crate) fn last(&self) -> StateId {
        self.last
    }

    /// Writes one entry and the state that it led to. When this returns, both are on disk; when it fails, neither
    /// will ever be seen. `routes`: the entry changes a route.
    pub(crate) fn append(
        &mut self,
        entry: &Entry,
        state: &[u8],
        routes: bool,
    ) -> Result<StateId, JournalError> {
        let body = canonical_json(entry)?;
        let hash = chain(&self.last_hash, &body);
        let next = self.last.next();
        let key = entry.service.to_string();
        let transaction = self.db.transaction().map_err(JournalError::Write)?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO entry VALUES (?1, ?2, ?3, ?4, ?5)")
                .map_err(JournalError::Write)?;
            insert
                .execute(params![next.0, entry.at.0, key, body, hash.as_bytes()])
                .map_err(JournalError::Write)?;
            let mut replace = transaction
                .prepare_cached("INSERT OR REPLACE INTO service VALUES (?1, ?2)")
                .map_err(JournalError::Write)?;
            replace
                .execute(params![key, state])
                .map_err(JournalError::Write)?;
            if routes {
                let mut update = transaction
                    .prepare_cached("UPDATE routing SET state = ?1")
                    .map_err(JournalError::Write)?;
                update.execute([next.0]).map_err(JournalError::Write)?;
            }
        }
        transaction.commit().map_err(JournalError::Write)?;
        self.last = next;
        self.last_hash = hash;
        Ok(next)
    }

    /// The newest `limit` entries of the services that `wanted` picks, newest first.
    pub(crate) fn newest(
        &self,
        limit: usize,
        wanted: impl Fn(&ServiceKey) -> bool,
    ) -> Result<Vec<(StateId, Entry)>, JournalError> {
        let mut select = self
            .db
            .prepare_cached("SELECT state, service, body FROM entry ORDER BY state DESC")
            .map_err(JournalError::Read)?;
        let mut rows = select.query([]).map_err(JournalError::Read)?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next().map_err(JournalError::Read)? {
            let key: String = row.get(1).map_err(JournalError::Read)?;
            let Ok(key) = ServiceKey::try_from(key) else {
                continue;
            };
            if !wanted(&key) {
                continue;
            }
            let state = StateId(row.get(0).map_err(JournalError::Read)?);
            let body: Vec<u8> = row.get(2).map_err(JournalError::Read)?;
            let entry = serde_json::from_slice(&body)
                .map_err(|source| JournalError::Entry { state, source })?;
            entries.push((state, entry));
            if entries.len() == limit {
                break;
            }
        }
        Ok(entries)
    }

    /// Reads the whole chain and finds the first entry that does not follow from the one before.
    pub(crate) fn verify(&self) -> Result<StateId, JournalError> {
        let mut select = self
            .db
            .prepare("SELECT state, body, hash FROM entry ORDER BY state")
            .map_err(JournalError::Read)?;
        let mut rows = select.query([]).map_err(JournalError::Read)?;
        let mut before = Digest::from_sha256([0; 32]);
        let mut expected = StateId(0);
        while let Some(row) = rows.next().map_err(JournalError::Read)? {
            expected = expected.next();
            let state = StateId(row.get(0).map_err(JournalError::Read)?);
            let body: Vec<u8> = row.get(1).map_err(JournalError::Read)?;
            let hash: [u8; 32] = row.get(2).map_err(JournalError::Read)?;
            before = chain(&before, &body);
            if state != expected || before.as_bytes() != &hash {
                return Err(JournalError::Broken { state: expected });
            }
        }
        Ok(expected)
    }
}

fn chain(before: &Digest, body: &[u8]) -> Digest {
    let mut bytes = Vec::with_capacity(32 + body.len());
    bytes.extend_from_slice(before.as_bytes());
    bytes.extend_from_slice(body);
    Digest::of(&bytes)
}

/// The images of all releases that the journal below `root` would start or return to, and whatever else its states name
/// by a digest. None where nothing was ever applied.
pub fn images_in_use(root: &Path) -> Result<BTreeSet<Digest>, JournalError> {
    let path = root.join("journal.db");
    if !path.is_file() {
        return Ok(BTreeSet::new());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let db = Connection::open_with_flags(&path, flags).map_err(|source| JournalError::Open {
        path: path.clone(),
        source,
    })?;
    db.busy_timeout(std::time::Duration::from_secs(5))
        .map_err(JournalError::Read)?;
    let version: i64 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(JournalError::Read)?;
    if version != SCHEMA_VERSION {
        // 0: its first controller is only making it.
        return match version {
            0 => Ok(BTreeSet::new()),
            found => Err(JournalError::Version { path, found }),
        };
    }
    let mut select = db
        .prepare("SELECT state FROM service")
        .map_err(JournalError::Read)?;
    let mut rows = select.query([]).map_err(JournalError::Read)?;
    let mut images = BTreeSet::new();
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let state: Vec<u8> = row.get(0).map_err(JournalError::Read)?;
        images.extend(kiln_oci::digests_in(&state));
    }
    Ok(images)
}

fn read_services(db: &Connection) -> Result<BTreeMap<ServiceKey, Service>, JournalError> {
    let mut select = db
        .prepare("SELECT key, state FROM service")
        .map_err(JournalError::Read)?;
    let mut rows = select.query([]).map_err(JournalError::Read)?;
    let mut services = BTreeMap::new();
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let key: String = row.get(0).map_err(JournalError::Read)?;
        let state: Vec<u8> = row.get(1).map_err(JournalError::Read)?;
        let service: Service =
            serde_json::from_slice(&state).map_err(|source| JournalError::State {
                service: key.clone(),
                source,
            })?;
        services.insert(service.key().clone(), service);
    }
    Ok(services)
}
