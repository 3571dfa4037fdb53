//! What can go wrong in the store, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use kiln_model::Digest;

use crate::layer::LayerError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left on the disk for {}: free some, or remove what is not needed with `kiln images prune`", path.display())]
    NoSpace { path: PathBuf },
    #[error("{} is on a read-only file system: mount it writable, or choose another data root with KILN_ROOT", path.display())]
    ReadOnly { path: PathBuf },
    #[error("no permission to {action} {}: run kiln as root, or choose a data root of your own with KILN_ROOT", path.display())]
    Permission { action: &'static str, path: PathBuf },
    #[error("cannot read what is to be stored")]
    Source {
        #[source]
        source: io::Error,
    },
    #[error("the store has no blob {digest}: bake or pull the image again")]
    BlobMissing { digest: Digest },
    #[error(
        "the blob {digest} has bytes in common with {donor}, which is gone from the store: bake or pull the image again"
    )]
    DonorMissing { digest: Digest, donor: Digest },
    #[error(
        "a bake that could not write down what it uses is running: try again when it has ended, and free some space on the disk"
    )]
    Busy,
    #[error("the blob {digest} is larger than the {limit} bytes expected here")]
    BlobTooLarge { digest: Digest, limit: u64 },
    #[error("the blob {digest} was changed on disk (it is now {actual}): delete {} and bake or pull the image again", path.display())]
    BlobCorrupt {
        digest: Digest,
        actual: Digest,
        path: PathBuf,
    },
    #[error(
        "`{tag}` is not a tag: expected 1 to 200 letters, digits and `.`, `_`, `-`, `+`, `:`, `/`, beginning with a letter or digit"
    )]
    TagInvalid { tag: String },
    #[error(
        "the tag {tag} is taken by {existing}, and a tag is never moved: choose another version"
    )]
    TagTaken { tag: String, existing: Digest },
    #[error("the record {} is damaged: delete it and bake the image again", path.display())]
    RecordDamaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("there is no image `{reference}` here: `kiln images` lists those there are")]
    UnknownReference { reference: String },
    #[error("`{reference}` begins the digests of {} images: give more of its digits ({})", matches.len(), list(matches))]
    AmbiguousReference {
        reference: String,
        matches: Vec<Digest>,
    },
    #[error("{digest} is not an image's {what}")]
    ImageInvalid {
        digest: Digest,
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the image's {what} cannot be written")]
    Document {
        what: &'static str,
        #[source]
        source: kiln_model::CanonicalError,
    },
    #[error("the image {digest} is not one that kiln can run: {problem}")]
    ImageUnsupported {
        digest: Digest,
        problem: &'static str,
    },
    #[error("the layer {diff_id} was changed on disk: {} does not have its recorded digest; delete that file, and it is made again from the image", path.display())]
    LayerChanged {
        diff_id: Digest,
        expected: Digest,
        actual: Digest,
        path: PathBuf,
    },
    #[error(
        "the store has no EROFS file for the layer {diff_id}: start an instance of its image or bake it again to have it made"
    )]
    LayerMissing { diff_id: Digest },
    #[error(
        "the blob of the layer {diff_id} unpacks to {actual}: the image is not what it says; pull or bake it again"
    )]
    DiffIdWrong { diff_id: Digest, actual: Digest },
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl StoreError {
    /// Something of the store can be read, and is not what it was when it was written.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::BlobTooLarge { .. }
            | Self::BlobCorrupt { .. }
            | Self::DonorMissing { .. }
            | Self::RecordDamaged { .. }
            | Self::ImageInvalid { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        }
    }
}

fn list(digests: &[Digest]) -> String {
    let shorts: Vec<_> = digests.iter().map(Digest::short).collect();
    shorts.join(", ")
}

/// Tells apart the failures of the disk that a person can mend.
pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace { path },
        io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path },
        io::ErrorKind::PermissionDenied => StoreError::Permission { action, path },
        _ => StoreError::Io {
            action,
            path,
            source,
        },
    }
}

/// A layer's own errors, except that a full disk is said as everywhere else.
pub(super) fn layer_error(path: &Path) -> impl FnOnce(LayerError) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |error| match error {
        LayerError::Write(source) => io_error("write", &path)(source),
        error => StoreError::Layer(error),
    }
}
