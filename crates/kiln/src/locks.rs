//! `kiln.lock` beside the definition: read, made to fit the images, written.

use std::path::{Path, PathBuf};

use kiln_bake::{Lock, LockRequest, Locked, PackageChange, Update};
use kiln_model::{ImageName, ImageSpec};
use kiln_oci::Store;

use crate::failure::Failure;
use crate::progress::{Live, Progress};
use crate::rollout;

/// A lock that fits.
pub(crate) struct Relocked {
    pub(crate) path: PathBuf,
    pub(crate) lock: Lock,
    /// Of each image of which something changed.
    pub(crate) images: Vec<ImageChanges>,
    before: Option<String>,
}

pub(crate) struct ImageChanges {
    pub(crate) image: ImageName,
    pub(crate) changes: Vec<PackageChange>,
}

/// Makes the folder's lock fit the images, in memory.
pub(crate) fn relock(
    store: &Store,
    folder: &Path,
    images: &[&ImageSpec],
    update: &Update,
) -> Result<Relocked, Failure> {
    let path = folder.join("kiln.lock");
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Failure::Lock {
        path: path.clone(),
        source,
    };
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error.into())),
    };
    let mut lock = match &before {
        Some(text) => Lock::parse(text).map_err(|error| failed(error.into()))?,
        None => Lock::default(),
    };
    if let Update::Packages(names) = update
        && let Some(name) = names.iter().find(|name| !lock.has(name))
    {
        return Err(Failure::NotLocked { name: name.clone() });
    }
    // Images that start from one another have one entry, which is changed once.
    let mut entries: Vec<&ImageName> = Vec::new();
    let mut changed = Vec::new();
    for image in images {
        let Some(first) = image.chain().first().map(|first| &first.name) else {
            continue;
        };
        if entries.contains(&first) {
            continue;
        }
        entries.push(first);
        let request = LockRequest {
            image,
            context: folder,
            lock: Some(&lock),
            update,
            now: rollout::now(),
        };
        let name = image.name.as_str();
        let live = Live::start(name, Progress::Auto);
        let locked = kiln_bake::lock(store, &request, &mut |progress| {
            live.tell(progress, &mut |_| {});
        });
        drop(live);
        let Locked {
            lock: next,
            changes,
        } = locked.map_err(|source| Failure::Locking {
            image: name.to_owned(),
            source: Box::new(source),
        })?;
        lock = next;
        if !changes.is_empty() {
            changed.push(ImageChanges {
                image: first.clone(),
                changes,
            });
        }
    }
    Ok(Relocked {
        path,
        lock,
        images: changed,
        before,
    })
}

impl Relocked {
    pub(crate) fn is_changed(&self) -> bool {
        match &self.before {
            Some(before) => *before != self.lock.to_string(),
            None => self.lock != Lock::default(),
        }
    }

    pub(crate) fn write(&self) -> Result<(), Failure> {
        kiln_fs::replace_in_place(&self.path, self.lock.to_string().as_bytes()).map_err(|error| {
            Failure::Lock {
                path: self.path.clone(),
                source: Box::new(error),
            }
        })
    }
}
