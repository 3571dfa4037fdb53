//! Reading the journal beside its writer, over connections that only read: no reader holds the owner up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_model::{Digest, Entry, EnvName, ServiceName, StateId, Subject};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::error::JournalError;
use super::{entry, verify};

/// The writer checkpoints its log now and then.
const BUSY: Duration = Duration::from_secs(5);

/// An entry with its number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Recorded<S> {
    pub(crate) state: StateId,
    #[serde(flatten)]
    pub(crate) entry: Entry<S>,
}

/// Which entries are wanted: those that meet all of what is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// About this environment, or something in it.
    pub(crate) environment: Option<EnvName>,
    /// About a service of this name.
    pub(crate) service: Option<ServiceName>,
    /// With a fact of this kind.
    pub(crate) kind: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The lowest numbers above this one.
    After(StateId),
    /// The highest numbers.
    Newest,
}

/// Entries that may be folded: the chain was found whole up to the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foldable {
    pub(super) up_to: StateId,
    pub(super) hash: Digest,
}

/// How much is kept of what happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) entries: u64,
    pub(crate) age: Duration,
    /// That many of the newest, whatever their age.
    pub(crate) always: u64,
    /// Fewer are not worth a snapshot.
    pub(crate) least: u64,
    /// What one snapshot folds at most, so that it takes a bounded time.
    pub(crate) most: u64,
}

/// Reads the journal on any thread. Each call sees one state of it.
#[derive(Clone)]
pub(crate) struct Reader {
    path: PathBuf,
    /// The last one used, to be used again.
    idle: Arc<Mutex<Option<Connection>>>,
    written: watch::Receiver<StateId>,
}

impl Reader {
    pub(super) fn new(path: &Path, written: watch::Receiver<StateId>) -> Self {
        Self {
            path: path.to_owned(),
            idle: Arc::default(),
            written,
        }
    }

    /// The last entry's number, and how to wait for the next: a receiver that changes with it.
    pub(crate) fn written(&self) -> watch::Receiver<StateId> {
        self.written.clone()
    }

    /// The newest entries, newest first.
    pub(crate) fn newest<S: DeserializeOwned>(
        &self,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<Recorded<S>>, JournalError> {
        self.reading(|db| select(db, filter, Order::Newest, limit))
    }

    /// The entries after `state`, oldest first.
    pub(crate) fn after<S: DeserializeOwned>(
        &self,
        state: StateId,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<Recorded<S>>, JournalError> {
        self.reading(|db| select(db, filter, Order::After(state), limit))
    }

    /// Reads the whole chain, and compares the states of all services with what their last entries say. The last entry.
    pub(crate) fn verify(&self) -> Result<StateId, JournalError> {
        self.reading(|db| {
            let (last, _) = verify::follow(db, verify::start(db)?, u64::MAX)?;
            match verify::changed_states(db)?.into_iter().next() {
                Some(service) => Err(JournalError::StateChanged { service }),
                None => Ok(last),
            }
        })
    }

    /// What is older than `keep` says. The chain is followed through all of it: a change must not be folded away. An age is
    /// that before the last entry, so that a clock that went wrong folds nothing.
    pub(crate) fn foldable(&self, keep: Keep) -> Result<Option<Foldable>, JournalError> {
        self.reading(|db| {
            let start = verify::start(db)?;
            let newest = db
                .query_row(
                    "SELECT state, at FROM entry ORDER BY state DESC LIMIT 1",
                    [],
                    |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)),
                )
                .optional()
                .map_err(JournalError::Read)?;
            let Some((last, now)) = newest else {
                return Ok(None);
            };
            let age = u64::try_from(keep.age.as_millis()).unwrap_or(u64::MAX);
            // Times never decrease along the journal, so the first that is young enough ends the search.
            let young: u64 = db
                .query_row(
                    "SELECT state FROM entry WHERE state > ?1 AND at >= ?2 ORDER BY state LIMIT 1",
                    params![start.0.0, now.saturating_sub(age)],
                    |row| row.get(0),
                )
                .map_err(JournalError::Read)?;
            let old = young
                .saturating_sub(1)
                .min(last.saturating_sub(keep.always));
            let up_to = last.saturating_sub(keep.entries).max(old);
            // The last one is kept in any case: a controller takes up at its number and its time.
            let up_to = up_to.min(last.saturating_sub(1));
            let count = up_to.saturating_sub(start.0.0).min(keep.most);
            if count < keep.least.max(1) {
                return Ok(None);
            }
            let (up_to, hash) = verify::follow(db, start, count)?;
            Ok(Some(Foldable { up_to, hash }))
        })
    }

    /// The database's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn reading<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let idle = self.take_idle();
        let mut db = match idle {
            Some(db) => db,
            None => connect(&self.path)?,
        };
        let answer = {
            let transaction = db.transaction().map_err(JournalError::Read)?;
            read(&transaction)
        };
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(db);
        answer
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.take()
    }
}

/// A connection that can't write. SQLite's log needs a file that may be written to, so the connection is not opened as
/// read-only but told to refuse.
pub(super) fn connect(path: &Path) -> Result<Connection, JournalError> {
    let open = |source| JournalError::Open {
        path: path.to_owned(),
        source,
    };
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(open)?;
    db.busy_timeout(BUSY).map_err(open)?;
    db.pragma_update(None, "query_only", true).map_err(open)?;
    Ok(db)
}

fn select<S: DeserializeOwned>(
    db: &Connection,
    filter: &Filter,
    order: Order,
    limit: usize,
) -> Result<Vec<Recorded<S>>, JournalError> {
    let mut entries = Vec::new();
    for state in numbers(db, filter, order, limit)? {
        let (format, body) = db
            .prepare_cached("SELECT format, body FROM entry WHERE state = ?1")
            .and_then(|mut select| {
                select.query_row([state], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))
            })
            .map_err(JournalError::Read)?;
        let state = StateId(state);
        let entry =
            entry::read(format, &body).map_err(|source| JournalError::Entry { state, source })?;
        entries.push(Recorded { state, entry });
    }
    Ok(entries)
}

/// The numbers of the wanted entries, in their order. Never reads an entry that is not wanted: it walks the index of each
/// subject that the filter picks.
fn numbers(
    db: &Connection,
    filter: &Filter,
    order: Order,
    limit: usize,
) -> Result<Vec<u64>, JournalError> {
    let (after, direction) = match order {
        Order::After(state) => (state.0, "ASC"),
        Order::Newest => (0, "DESC"),
    };
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let kind = filter.kind.as_deref();
    let read = |row: &rusqlite::Row<'_>| row.get::<_, u64>(0);
    let mut found = Vec::new();
    match (subjects(db, filter)?, kind) {
        (None, None) => {
            let sql = format!(
                "SELECT state FROM entry WHERE state > ?1 ORDER BY state {direction} LIMIT ?2"
            );
            let mut select = db.prepare_cached(&sql).map_err(JournalError::Read)?;
            let rows = select
                .query_map(params![after, most], read)
                .map_err(JournalError::Read)?;
            collect(rows, &mut found)?;
        }
        (None, Some(kind)) => {
            let sql = format!(
                "SELECT state FROM entry WHERE kind = ?3 AND state > ?1 ORDER BY state {direction} LIMIT ?2"
            );
            let mut select = db.prepare_cached(&sql).map_err(JournalError::Read)?;
            let rows = select
                .query_map(params![after, most, kind], read)
                .map_err(JournalError::Read)?;
            collect(rows, &mut found)?;
        }
        (Some(subjects), kind) => {
            let sql = format!(
                "SELECT state FROM entry WHERE subject = ?3 AND state > ?1 AND (?4 IS NULL OR kind = ?4) \
                 ORDER BY state {direction} LIMIT ?2"
            );
            let mut select = db.prepare_cached(&sql).map_err(JournalError::Read)?;
            for subject in subjects {
                let rows = select
                    .query_map(params![after, most, subject, kind], read)
                    .map_err(JournalError::Read)?;
                collect(rows, &mut found)?;
            }
        }
    }
    found.sort_unstable();
    if order == Order::Newest {
        found.reverse();
    }
    found.truncate(limit);
    Ok(found)
}

fn collect(
    rows: impl Iterator<Item = rusqlite::Result<u64>>,
    into: &mut Vec<u64>,
) -> Result<(), JournalError> {
    for row in rows {
        into.push(row.map_err(JournalError::Read)?);
    }
    Ok(())
}

/// The subjects that the filter picks, of those that have entries; `None`: all.
fn subjects(db: &Connection, filter: &Filter) -> Result<Option<Vec<String>>, JournalError> {
    let Filter {
        environment,
        service,
        kind: _,
    } = filter;
    let mut picked = Vec::new();
    let prefix = match (environment, service) {
        (None, None) => return Ok(None),
        (Some(environment), Some(service)) => {
            return Ok(Some(vec![format!("service:{environment}/{service}")]));
        }
        (Some(environment), None) => {
            picked.push(format!("environment:{environment}"));
            format!("service:{environment}/")
        }
        (None, Some(_)) => "service:".to_owned(),
    };
    // Each step jumps over all entries of one subject.
    let mut next = db
        .prepare_cached("SELECT min(subject) FROM entry WHERE subject > ?1")
        .map_err(JournalError::Read)?;
    let mut last = prefix.clone();
    loop {
        let found: Option<String> = next
            .query_row([&last], |row| row.get(0))
            .map_err(JournalError::Read)?;
        let Some(found) = found.filter(|found| found.starts_with(&prefix)) else {
            return Ok(Some(picked));
        };
        let subject = Subject::from(found.clone());
        let is_picked = service
            .as_ref()
            .is_none_or(|name| subject.service().is_some_and(|key| key.service == *name));
        if is_picked {
            picked.push(found.clone());
        }
        last = found;
    }
}
