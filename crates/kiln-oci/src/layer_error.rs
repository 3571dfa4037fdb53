//! Why a layer can't be described or written.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why a layer could not be described or written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    #[error("cannot read the layer's tar stream")]
    Read(#[source] io::Error),
    #[error("`{}` is not a path within a layer: it is empty, leaves the root or has a NUL byte", path.display())]
    PathInvalid { path: PathBuf },
    #[error("`{}` is below `{}`, which is not a directory in this layer", path.display(), parent.display())]
    ParentNotDirectory { path: PathBuf, parent: PathBuf },
    #[error("the hard link `{}` names `{}`, which is not a file of this layer", path.display(), target.display())]
    LinkTarget { path: PathBuf, target: PathBuf },
    #[error("`{}` changed while the layer was written: expected {expected} bytes, read {actual}; write it again when nothing changes it", path.display())]
    ContentChanged {
        path: PathBuf,
        expected: u64,
        actual: u64,
    },
    #[error("`{}` changed while the layer was written: write it again when nothing changes it", path.display())]
    ContentDiffers { path: PathBuf },
    #[error("`{}` begins with `.wh.`, which a layer keeps for deleted files; rename it", path.display())]
    ReservedName { path: PathBuf },
    #[error("`{}` has the extended attribute `{name}`, which a layer cannot keep ({reason}); remove it", path.display())]
    Xattr {
        path: PathBuf,
        name: String,
        reason: &'static str,
    },
    #[error("`{}` was stored by overlayfs as a reference (`{name}`): mount the overlay with redirect_dir=off,metacopy=off", path.display())]
    OverlayReference { path: PathBuf, name: String },
    #[error("`{}` has a name or a link target longer than Linux takes", path.display())]
    NameTooLong { path: PathBuf },
    #[error("the layer is larger than the 16 TiB an EROFS file can have")]
    TooLarge,
    #[error("the layer's tar stream is not valid at byte {offset}: {problem}")]
    TarInvalid { offset: u64, problem: &'static str },
    #[error(
        "the layer has more than {limit} {what}; it is refused, as one that would exhaust memory"
    )]
    Limit { what: &'static str, limit: u64 },
}

/// The path of an entry, for messages and for files.
pub(crate) fn to_path(key: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(key))
}
