//! The journal's tables, and how a journal of an older kiln becomes one of this.
//!
//! | Format | What is new |
//! |---|---|
//! | 1 | the first: an entry is about one service |
//! | 2 | an entry is about any subject, with indexes; a state has a format; the journal has an id and an epoch |
//!
//! A migration never touches the body of an entry or its hash: the chain of hashes stays verifiable. `entry.format` says how
//! a body is read ([`super::entry`]).

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::error::JournalError;

/// The format that this kiln writes.
pub(super) const FORMAT: i64 = 2;

const TABLES: &str = "
    CREATE TABLE entry (
        state   INTEGER PRIMARY KEY,
        at      INTEGER NOT NULL,
        subject TEXT NOT NULL,
        kind    TEXT NOT NULL,
        format  INTEGER NOT NULL,
        body    BLOB NOT NULL,
        hash    BLOB NOT NULL
    );
    CREATE INDEX entry_of_subject ON entry (subject, state);
    CREATE INDEX entry_of_kind ON entry (kind, state);
    CREATE TABLE service (
        key    TEXT PRIMARY KEY,
        format INTEGER NOT NULL,
        state  BLOB NOT NULL
    );
    CREATE TABLE meta (
        one   INTEGER PRIMARY KEY CHECK (one = 1),
        id    BLOB NOT NULL,
        epoch INTEGER NOT NULL
    );
    INSERT INTO meta VALUES (1, randomblob(16), 1);";

/// Makes the tables of a new journal, or brings those of an older one up to [`FORMAT`], in one transaction.
pub(super) fn prepare(db: &mut Connection, path: &Path) -> Result<(), JournalError> {
    let open = |source| JournalError::Open {
        path: path.to_owned(),
        source,
    };
    let found = format_of(db).map_err(open)?;
    match found {
        FORMAT => Ok(()),
        0 => create(db).map_err(open),
        1..FORMAT => migrate(db, found, FORMAT).map_err(|source| JournalError::Migrate {
            path: path.to_owned(),
            from: found,
            source,
        }),
        found => Err(JournalError::Version {
            path: path.to_owned(),
            found,
        }),
    }
}

/// 0: its first controller is only making it.
pub(super) fn format_of(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn create(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(
        "CREATE TABLE routing (one INTEGER PRIMARY KEY CHECK (one = 1), state INTEGER NOT NULL);
         INSERT INTO routing VALUES (1, 0);",
    )?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

fn migrate(db: &mut Connection, from: i64, to: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for format in from..to {
        match format {
            1 => from_1_to_2(&transaction)?,
            other => unreachable!("there is no step from format {other}"),
        }
    }
    transaction.pragma_update(None, "user_version", to)?;
    transaction.commit()
}

/// Every entry was a step of a service; every state had the planner's first format.
fn from_1_to_2(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE entry RENAME TO entry_1;
         ALTER TABLE service RENAME TO service_1;",
    )?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(
        "INSERT INTO entry SELECT state, at, 'service:' || service, 'service', 1, body, hash FROM entry_1 ORDER BY state;
         INSERT INTO service SELECT key, 1, state FROM service_1;
         DROP TABLE entry_1;
         DROP TABLE service_1;",
    )
}
