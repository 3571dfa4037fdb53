//! Whether an EROFS file, and those that it takes blocks from, are what their digests say.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_model::Digest;

use super::donors::donor_paths;
use crate::hashing::hash_file;

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{} can't be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has the digest {found}, and {expected} was recorded", path.display())]
    Changed {
        path: PathBuf,
        expected: Digest,
        found: Digest,
    },
}

/// Reads the file, and those that it takes blocks from, to their ends and compares them with their digests.
pub fn check(path: &Path, digest: &Digest) -> Result<(), CheckError> {
    check_file(path, digest)?;
    let read = |source| CheckError::Read {
        path: path.to_owned(),
        source,
    };
    for (digest, path) in donor_paths(path).map_err(read)? {
        check_donor(&path, &digest)?;
    }
    Ok(())
}

/// As `check_file`, once in the life of this process for a file that stays as it is: many layers take blocks from the same.
fn check_donor(path: &Path, digest: &Digest) -> Result<(), CheckError> {
    static CHECKED: Mutex<BTreeSet<(PathBuf, [i64; 6])>> = Mutex::new(BTreeSet::new());
    let meta = fs::metadata(path).map_err(|source| CheckError::Read {
        path: path.to_owned(),
        source,
    })?;
    let is = [
        meta.ino().cast_signed(),
        meta.len().cast_signed(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    let key = (path.to_owned(), is);
    let checked = || CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !checked().contains(&key) {
        check_file(path, digest)?;
        checked().insert(key);
    }
    Ok(())
}

fn check_file(path: &Path, digest: &Digest) -> Result<(), CheckError> {
    let found = File::open(path)
        .and_then(hash_file)
        .map_err(|source| CheckError::Read {
            path: path.to_owned(),
            source,
        })?;
    if found == *digest {
        return Ok(());
    }
    Err(CheckError::Changed {
        path: path.to_owned(),
        expected: *digest,
        found,
    })
}
