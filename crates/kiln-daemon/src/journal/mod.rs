//! The journal: the append-only record of all that happened, and the state it led to.
//!
//! One transaction holds entries and the state of each service that they are about: all of it is on disk afterwards, or
//! nothing is. Entries are chained: each has a hash over its body and the hash of the one before, so that a changed or
//! missing entry is found by reading on from the start, or from the newest snapshot.
//!
//! [`Journal`] writes, on the owner's thread, and reads nothing but what it starts from. [`Reader`] reads beside it.
//!
//! SQLite in WAL mode with `synchronous = FULL`: one `fdatasync` of the log a commit.

mod entry;
mod error;
mod in_use;
mod read;
mod schema;
mod upkeep;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_control::{Draft, Record};
use kiln_model::{
    Digest, Fact, Generation, ServiceKey, Snapshot, StateId, Subject, Timestamp, canonical_json,
};
use kiln_plan::{Event, STATE_FORMAT, Service, StepRecord};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

pub use error::JournalError;
pub use in_use::images_in_use;
pub(crate) use read::{Filter, Foldable, Reader, Recorded};
pub(crate) use upkeep::{Upkeep, keep_small};

/// What happened, with a step of the planner as the fact about a service.
pub(crate) type Entry = kiln_model::Entry<StepRecord>;

pub(crate) struct Journal {
    path: PathBuf,
    db: Connection,
    last: StateId,
    last_hash: Digest,
    /// The generation of the proxy's table.
    table: Generation,
    written: watch::Sender<StateId>,
}

/// What a controller starts from.
pub(crate) struct Recovered {
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// The last timestamp journalled.
    pub(crate) at: Timestamp,
    /// The generation of the proxy's table: the entry that last changed a route, or above.
    pub(crate) table: Generation,
    /// The services whose state on disk is not the one that was written.
    pub(crate) changed: Vec<String>,
}

/// An entry to be written, and what it changes besides.
pub(crate) struct Write<'a> {
    pub(crate) entry: &'a Entry,
    /// The state of the service that the entry is about, in [`STATE_FORMAT`]; `None`: it stays as it is.
    pub(crate) state: Option<&'a [u8]>,
    /// The entry changes a route.
    pub(crate) routes: bool,
}

/// What a transaction led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The last entry's number.
    pub(crate) state: StateId,
    /// The generation of the proxy's table after it.
    pub(crate) table: Generation,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<(Self, Recovered), JournalError> {
        let open = |source| JournalError::Open {
            path: path.to_owned(),
            source,
        };
        let mut db = Connection::open(path).map_err(open)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000;",
        )
        .map_err(open)?;
        schema::prepare(&mut db, path)?;
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
        let recovered = Recovered {
            services: read_services(&db)?,
            at: Timestamp(at),
            table: Generation(table),
            changed: verify::changed_states(&db)?,
        };
        let journal = Self {
            path: path.to_owned(),
            db,
            last: StateId(last),
            last_hash: Digest::from_sha256(last_hash),
            table: Generation(table),
            written: watch::Sender::new(StateId(last)),
        };
        Ok((journal, recovered))
    }

    /// The entry last written; 0 before the first.
    pub(crate) fn last(&self) -> StateId {
        self.last
    }

    /// A handle for other threads.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(&self.path, self.written.subscribe())
    }

    /// Writes one entry about a service and the state that it led to.
    pub(crate) fn append(
        &mut self,
        entry: &Entry,
        state: &[u8],
        routes: bool,
    ) -> Result<Written, JournalError> {
        self.append_all(&[Write {
            entry,
            state: Some(state),
            routes,
        }])
    }

    /// Writes entries that belong together. When this returns, all are on disk; when it fails, none will ever be seen.
    pub(crate) fn append_all(&mut self, writes: &[Write<'_>]) -> Result<Written, JournalError> {
        let transaction = self.db.transaction().map_err(JournalError::Write)?;
        let (mut last, mut hash, mut table) = (self.last, self.last_hash, self.table);
        for Write {
            entry,
            state,
            routes,
        } in writes
        {
            let body = canonical_json(entry)?;
            hash = entry::chain(&hash, &body);
            last = last.next();
            transaction
                .prepare_cached("INSERT INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
                .and_then(|mut insert| {
                    insert.execute(params![
                        last.0,
                        entry.at.0,
                        entry.subject.to_string(),
                        entry.fact.kind(),
                        entry::BODY_FORMAT,
                        body,
                        hash.as_bytes()
                    ])
                })
                .map_err(JournalError::Write)?;
            if let (Some(state), Subject::Service(key)) = (state, &entry.subject) {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO service VALUES (?1, ?2, ?3)")
                    .and_then(|mut replace| {
                        replace.execute(params![key.to_string(), STATE_FORMAT, state])
                    })
                    .map_err(JournalError::Write)?;
            }
            if *routes {
                table = Generation(last.0).max(table.next());
                transaction
                    .prepare_cached("UPDATE routing SET state = ?1")
                    .and_then(|mut update| update.execute([table.0]))
                    .map_err(JournalError::Write)?;
            }
        }
        transaction.commit().map_err(JournalError::Write)?;
        (self.last, self.last_hash, self.table) = (last, hash, table);
        self.written.send_replace(last);
        Ok(Written { state: last, table })
    }

    /// Makes the next table's generation higher than `served`, which a proxy serves already: the journal was put back to an
    /// earlier state. That begins a new epoch. Nothing is done where the generation is as high.
    pub(crate) fn raise_generation(&mut self, served: Generation) -> Result<(), JournalError> {
        if served <= self.table {
            return Ok(());
        }
        let transaction = self.db.transaction().map_err(JournalError::Write)?;
        transaction
            .execute("UPDATE routing SET state = ?1", [served.0])
            .and_then(|_| transaction.execute("UPDATE meta SET epoch = epoch + 1", []))
            .map_err(JournalError::Write)?;
        transaction.commit().map_err(JournalError::Write)?;
        self.table = served;
        Ok(())
    }

    /// How often the journal was put back to an earlier state, as far as a proxy knew; 1 at first.
    #[cfg_attr(not(test), allow(dead_code))] // as above
    pub(crate) fn epoch(&self) -> Result<u64, JournalError> {
        self.db
            .query_row("SELECT epoch FROM meta", [], |row| row.get(0))
            .map_err(JournalError::Read)
    }

    /// Writes what the controller decided.
    pub(crate) fn write(&mut self, draft: &Draft) -> Result<kiln_control::Written, JournalError> {
        let Draft {
            at,
            actor,
            record,
            routes,
        } = draft;
        match record {
            Record::TableRaised { at_least } => {
                self.raise_generation(*at_least)?;
            }
            Record::Step {
                service,
                event,
                actions,
                notices,
                state,
            } => {
                let unreadable = |source| JournalError::State {
                    service: service.to_string(),
                    source,
                };
                let state = state.write_state().map_err(unreadable)?;
                let entry = Entry {
                    at: *at,
                    actor: actor.clone(),
                    subject: Subject::Service(service.clone()),
                    fact: Fact::Service(StepRecord {
                        event: Event::clone(event),
                        actions: actions.clone(),
                        notices: notices.clone(),
                        state: Digest::of(&state),
                    }),
                };
                self.append(&entry, &state, *routes)?;
            }
        }
        Ok(kiln_control::Written {
            state: self.last,
            table: self.table,
        })
    }

    /// Folds what `foldable` found: writes the snapshot. The entries themselves are deleted later, by [`keep_small`].
    pub(crate) fn fold(&mut self, foldable: Foldable, at: Timestamp) -> Result<(), JournalError> {
        let Foldable { up_to, hash } = foldable;
        let entry = Entry {
            at,
            actor: None,
            subject: Subject::Machine,
            fact: Fact::Snapshot(Snapshot {
                up_to,
                hash,
                states: verify::state_digests(&self.db)?,
            }),
        };
        self.append_all(&[Write {
            entry: &entry,
            state: None,
            routes: false,
        }])?;
        Ok(())
    }
}

fn read_services(db: &Connection) -> Result<BTreeMap<ServiceKey, Service>, JournalError> {
    let mut select = db
        .prepare("SELECT key, format, state FROM service")
        .map_err(JournalError::Read)?;
    let mut rows = select.query([]).map_err(JournalError::Read)?;
    let mut services = BTreeMap::new();
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let key: String = row.get(0).map_err(JournalError::Read)?;
        let format = row.get(1).map_err(JournalError::Read)?;
        let state: Vec<u8> = row.get(2).map_err(JournalError::Read)?;
        let service =
            Service::read_state(format, &state).map_err(|source| JournalError::State {
                service: key.clone(),
                source,
            })?;
        services.insert(service.key().clone(), service);
    }
    Ok(services)
}
