//! What can be wrong with an image that others made. `place` is the archive or the registry's name of it.

use std::io;
use std::path::PathBuf;

use kiln_model::Digest;

use crate::layer::LayerError;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(
        "`{text}` names no archive: write oci:DIR, oci-archive:FILE or docker-archive:FILE, each with :TAG or @DIGEST where it has several images"
    )]
    Reference { text: String },
    #[error("{place}: {} can't be read", path.display())]
    Io {
        place: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{place}: {} is not {what}: {problem}", path.display())]
    NotArchive {
        place: String,
        path: PathBuf,
        what: &'static str,
        problem: &'static str,
    },
    #[error("{place}: the archive can't be read")]
    Archive {
        place: String,
        #[source]
        source: LayerError,
    },
    #[error("{place}: it has no image `{wanted}`: {}", named(.known))]
    NoImage {
        place: String,
        wanted: String,
        known: Vec<String>,
    },
    #[error("{place}: it has several images: add :TAG to say which; {}", named(.known))]
    Several { place: String, known: Vec<String> },
    #[error("{place}: it has no image for {wanted}: {}", platforms(.known))]
    Platform {
        place: String,
        wanted: String,
        known: Vec<String>,
    },
    #[error("{place}: the {what} {digest} can't be understood")]
    Document {
        place: String,
        what: &'static str,
        digest: Digest,
        #[source]
        source: serde_json::Error,
    },
    #[error("{place}: {file} can't be understood")]
    File {
        place: String,
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{place}: {what} has {size} bytes or more, more than any manifest or configuration")]
    TooLarge {
        place: String,
        what: String,
        size: u64,
    },
    #[error("{place}: it lacks {what}, which it names")]
    Missing { place: String, what: String },
    #[error("{place}: {digest} can't be read")]
    Read {
        place: String,
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error(
        "{place}: what is called {expected} is {found}: it was damaged or changed, and nothing of it is used"
    )]
    Mismatch {
        place: String,
        expected: Digest,
        found: Digest,
    },
    #[error("{place}: {digest} does not have the {expected} bytes that its manifest says")]
    Size {
        place: String,
        digest: Digest,
        expected: u64,
    },
    #[error("{place}: {problem}")]
    Unsupported { place: String, problem: String },
    #[error("{place}: layer {number} of {of} ({digest}) can't be unpacked")]
    Unpack {
        place: String,
        number: usize,
        of: usize,
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("{place}: layer {number} of {of} ({digest}) is refused")]
    Layer {
        place: String,
        number: usize,
        of: usize,
        digest: Digest,
        #[source]
        source: Box<StoreError>,
    },
    #[error(
        "{place}: layer {number} of {of} has {size} bytes and unpacks to more than {limit}: it is refused, as one that would fill the disk"
    )]
    Bomb {
        place: String,
        number: usize,
        of: usize,
        limit: u64,
        size: u64,
    },
    /// The network's, told by whoever asked.
    #[error("{place}: {problem}")]
    Registry { place: String, problem: String },
    #[error("the store can't be used")]
    Store(#[from] StoreError),
}

fn named(names: &[String]) -> String {
    match names {
        [] => "none in it has a name".to_owned(),
        names => format!("it has {}", names.join(", ")),
    }
}

fn platforms(names: &[String]) -> String {
    match names {
        [] => "it does not say which it has".to_owned(),
        names => format!("it has {}", names.join(", ")),
    }
}
