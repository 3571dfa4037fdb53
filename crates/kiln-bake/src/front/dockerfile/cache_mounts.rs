//! The caches of `RUN --mount=type=cache`: folders of the store that no layer holds, by id, with their locks.
//!
//! ```text
//! store/mounts/<hex>/data   what the steps see
//! store/mounts/<hex>/id     what the Dockerfile calls it
//! store/mounts/<hex>/lock   shared while a step has it, or alone
//! ```

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kiln_config::dockerfile::Sharing;
use kiln_model::Digest;
use kiln_oci::Store;
use rustix::fs::{FlockOperation, flock};

use crate::error::BakeError;

/// Before the name of a cache that is being made: the process, and its number there.
const NEW: &str = "new-";

/// How soon a cache that was given back is seen, and that the bake was stopped.
const TURN: Duration = Duration::from_millis(50);

/// A cache that a step has until this is dropped.
pub(super) struct Cache {
    pub(super) data: PathBuf,
    _lock: File,
}

/// What a cache is known by, and how it begins.
pub(super) struct Wanted<'a> {
    pub(super) id: &'a str,
    pub(super) key: Digest,
    pub(super) sharing: Sharing,
    /// Copied into a new one.
    pub(super) seed: Option<&'a Path>,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

impl Cache {
    /// Takes the cache, waiting where its sharing says so; `stop` ends the wait.
    pub(super) fn take(
        store: &Store,
        wanted: &Wanted<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, BakeError> {
        let alone = match wanted.sharing {
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
            Sharing::Private | Sharing::Locked => FlockOperation::NonBlockingLockExclusive,
        };
        for number in 0.. {
            let name = match number {
                0 => wanted.key.hex(),
                number => format!("{}.{number}", wanted.key.hex()),
            };
            let folder = store.dir().join("mounts").join(name);
            fs::create_dir_all(&folder).map_err(BakeError::io(&folder))?;
            let path = folder.join("lock");
            loop {
                let lock = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)
                    .map_err(BakeError::io(&path))?;
                match flock(&lock, alone) {
                    Ok(()) => {
                        // Who removes a cache holds its lock, and another may have been made since.
                        let is_same = fs::metadata(&path).ok().map(|there| there.ino())
                            == lock.metadata().ok().map(|there| there.ino());
                        if !is_same {
                            fs::create_dir_all(&folder).map_err(BakeError::io(&folder))?;
                            continue;
                        }
                        // What has not been used for long is pruned first.
                        lock.set_modified(SystemTime::now())
                            .map_err(BakeError::io(&path))?;
                        let data = folder.join("data");
                        fill(&folder, &data, wanted)?;
                        return Ok(Self { data, _lock: lock });
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => {}
                    Err(errno) => return Err(BakeError::io(&path)(errno.into())),
                }
                if wanted.sharing == Sharing::Private {
                    break;
                }
                if stop() {
                    return Err(BakeError::Stopped);
                }
                std::thread::sleep(TURN);
            }
        }
        Err(BakeError::Stopped)
    }
}

fn fill(folder: &Path, data: &Path, wanted: &Wanted<'_>) -> Result<(), BakeError> {
    if data.is_dir() {
        return Ok(());
    }
    let io = |path: &Path| BakeError::io(path.to_owned());
    let id = folder.join("id");
    fs::write(&id, wanted.id).map_err(io(&id))?;
    // Several that share it may be first: each makes its own, and one of them stays.
    sweep(folder).map_err(io(folder))?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let new = folder.join(format!("{NEW}{}-{number}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&new)
        .map_err(io(&new))?;
    if let Some(seed) = wanted.seed {
        kiln_engine::copy_tree(seed, &new).map_err(io(seed))?;
    }
    chown(&new, Some(wanted.owner.0), Some(wanted.owner.1)).map_err(io(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(wanted.mode)).map_err(io(&new))?;
    match fs::rename(&new, data) {
        Err(_) if data.is_dir() => fs::remove_dir_all(&new).map_err(io(&new)),
        renamed => renamed.map_err(io(data)),
    }
}

/// Removes what a bake that was killed had begun.
fn sweep(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(NEW));
        let owner = rest.and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
