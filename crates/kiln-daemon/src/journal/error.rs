use std::path::PathBuf;

use kiln_model::StateId;
use kiln_plan::StateError;

use super::schema::FORMAT;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal {path} can't be opened")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the journal {path} has format {found}, and this kiln knows formats up to {FORMAT}: use the kiln that wrote it, or a newer one"
    )]
    Version { path: PathBuf, found: i64 },
    #[error(
        "the journal {path} can't be brought from format {from} to format {FORMAT}, and was left as it is: free space on its disk"
    )]
    Migrate {
        path: PathBuf,
        from: i64,
        #[source]
        source: rusqlite::Error,
    },
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
        source: StateError,
    },
    #[error("an entry has no canonical form")]
    Canonical(#[from] kiln_model::CanonicalError),
    #[error("the journal was changed: entry {state} does not follow from the one before it")]
    Broken { state: StateId },
    #[error("the journal was changed: what entry {state} is listed under is not what it says")]
    Index { state: StateId },
    #[error(
        "the journal was changed: the state of {service} is not the one that its last entry led to"
    )]
    StateChanged { service: String },
}
