//! Keeps the journal at a bounded length. What is older than [`KEEP`] is folded into a snapshot and then deleted.
//!
//! Nothing that is decided depends on old entries: services start from their states, and a rollback from the releases in
//! them. The check of what is folded and the deletion happen beside the owner; it only writes the snapshot's entry.

use std::path::Path;
use std::time::Duration;

use kiln_model::StateId;
use rusqlite::{Connection, OpenFlags, params};

use super::error::JournalError;
use super::read::{Foldable, Keep, Reader};
use super::verify;

const KEEP: Keep = Keep {
    entries: 100_000,
    age: Duration::from_secs(400 * 24 * 3600),
    always: 1_000,
    least: 1_000,
    most: 10_000,
};
/// A controller that starts has more urgent things to do than to read all that ever happened.
const FIRST: Duration = Duration::from_secs(2);
/// How often it is looked whether something can be folded.
const EVERY: Duration = Duration::from_secs(3600);
/// Rows that one transaction deletes: the owner's next write waits for it.
const DELETED_AT_ONCE: u64 = 500;

/// What the journal's writer has to hear of it.
pub(crate) enum Upkeep {
    /// Something was read that was not written so.
    Spoilt(JournalError),
    /// Old entries that [`super::Journal::fold`] can fold.
    Foldable(Foldable),
}

/// Verifies the journal once, and keeps it small, until `tell` gives false: nobody writes it any more.
pub(crate) async fn keep_small(reader: Reader, tell: impl Fn(Upkeep) -> bool) {
    tokio::time::sleep(FIRST).await;
    let first = reader.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || first.verify()).await
        && !tell(Upkeep::Spoilt(error))
    {
        return;
    }
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let reader = reader.clone();
        let found = tokio::task::spawn_blocking(move || {
            delete_folded(reader.path())?;
            reader.foldable(KEEP)
        });
        let goes_on = match found.await {
            Ok(Ok(Some(foldable))) => tell(Upkeep::Foldable(foldable)),
            Ok(Ok(None)) | Err(_) => true,
            Ok(Err(error)) => tell(Upkeep::Spoilt(error)),
        };
        if !goes_on {
            return;
        }
    }
}

/// Deletes the entries that the newest snapshot folded, few at a time.
pub(super) fn delete_folded(path: &Path) -> Result<(), JournalError> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(JournalError::Write)?;
    db.busy_timeout(Duration::from_secs(5))
        .map_err(JournalError::Write)?;
    let Some((_, snapshot)) = verify::newest_snapshot(&db)? else {
        return Ok(());
    };
    let StateId(up_to) = snapshot.up_to;
    loop {
        let deleted = db
            .execute(
                "DELETE FROM entry WHERE state IN (SELECT state FROM entry WHERE state <= ?1 ORDER BY state LIMIT ?2)",
                params![up_to, DELETED_AT_ONCE],
            )
            .map_err(JournalError::Write)?;
        if deleted == 0 {
            return Ok(());
        }
    }
}
