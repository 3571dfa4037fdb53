use std::io;
use std::path::PathBuf;

/// Why a repository's files can't be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("the Git repository {url} can't be had: {reason}")]
    Repository { url: String, reason: String },
    #[error(
        "no space left on the disk for {path}: free some, or choose another data root with KILN_ROOT"
    )]
    NoSpace { path: PathBuf },
    #[error("{path} can't be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl GitError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { path, source },
        }
    }
}
