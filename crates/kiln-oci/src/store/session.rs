//! What a process is using, for [`Store::prune`] to leave alone.
//!
//! A session is a locked file with the digests that its process has asked for or written. One is added before the store
//! is asked whether it has it: after that, what is there stays there while the session lasts. Adding takes the store's
//! gate for an instant, and pruning holds the gate: so a bake never waits for more than one deletion, nor a prune for a
//! bake.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kiln_model::Digest;

use super::Store;
use super::error::{StoreError, io_error};

/// As long as a prune waits for those who could not write down what they use.
const WAIT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Session {
    /// Of the store.
    dir: Arc<Path>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    noted: HashSet<Digest>,
    gate: Option<File>,
    file: Option<(File, PathBuf)>,
    /// It could not be written: the gate stays locked instead.
    holds: bool,
}

impl Session {
    pub(super) fn new(dir: Arc<Path>) -> Self {
        Self {
            dir,
            state: Mutex::default(),
        }
    }

    fn note(&self, digest: &Digest) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.holds || !state.noted.insert(*digest) {
            return;
        }
        if state.write(&self.dir, digest).is_err() {
            // On a full disk, say. Where not even the gate can be opened, nobody can delete either.
            let locked = state.gate.as_ref().map(File::lock_shared);
            state.holds = matches!(locked, Some(Ok(())));
        }
    }
}

impl State {
    fn write(&mut self, dir: &Path, digest: &Digest) -> io::Result<()> {
        let gate = match &mut self.gate {
            Some(gate) => gate,
            gate => gate.insert(open_gate(dir)?),
        };
        gate.lock_shared()?;
        let (file, _) = match &mut self.file {
            Some(file) => file,
            file => file.insert(create(&dir.join("sessions"))?),
        };
        file.write_all(digest.as_bytes())?;
        gate.unlock()?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, path)) = &state.file {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "should it fail, the next prune finds it unlocked"
            )]
            let _ = fs::remove_file(path);
        }
    }
}

fn open_gate(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(dir.join("gate"))
}

fn create(folder: &Path) -> io::Result<(File, PathBuf)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}", std::process::id()));
        let mut options = OpenOptions::new();
        match options
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => {
                file.lock()?;
                return Ok((file, path));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

impl Store {
    /// The same store, for work of its own: what it uses from now on stays while the answer, or a clone of it, lives.
    pub fn in_session(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            session: Some(Arc::new(Session::new(self.dir.clone()))),
        }
    }

    /// The same store, for who lives longer than what it uses.
    pub fn without_session(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            session: None,
        }
    }

    /// To be called before asking whether there is such a thing.
    pub(super) fn note(&self, digest: &Digest) {
        if let Some(session) = &self.session {
            session.note(digest);
        }
    }

    /// Says that a file was used: what has not been for long is pruned first. Its time is its last use, to the hour.
    pub(super) fn touch(&self, file: &File) {
        if self.session.is_none() {
            return;
        }
        let now = SystemTime::now();
        let used = file.metadata().and_then(|meta| meta.modified());
        let is_old = used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > HOUR));
        if is_old {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "on a read-only disk nothing is pruned"
            )]
            let _ = file.set_modified(now);
        }
    }

    /// Waits until nobody is adding to a session. Nobody can until the answer is dropped.
    pub(super) fn close_gate(&self) -> Result<File, StoreError> {
        let path = self.dir.join("gate");
        let gate = open_gate(&self.dir).map_err(io_error("open", &path))?;
        let deadline = Instant::now() + WAIT;
        loop {
            match gate.try_lock() {
                Ok(()) => return Ok(gate),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(StoreError::Busy),
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
    }

    /// What living sessions use, and removes what dead ones left. Only with the gate closed.
    pub(super) fn noted(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let folder = self.dir.join("sessions");
        let mut noted = BTreeSet::new();
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let path = entry.map_err(io_error("list", &folder))?.path();
            let file = match File::open(&path) {
                // It ended at this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(io_error("open", &path))?,
            };
            if file.try_lock().is_ok() {
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "the next prune finds it unlocked again"
                )]
                let _ = fs::remove_file(&path);
                continue;
            }
            // By the open file: what it noted counts, also when it ends now.
            let mut bytes = Vec::new();
            (&file)
                .read_to_end(&mut bytes)
                .map_err(io_error("read", &path))?;
            let digests = bytes.chunks_exact(32);
            noted
                .extend(digests.filter_map(|bytes| bytes.try_into().ok().map(Digest::from_sha256)));
        }
        Ok(noted)
    }
}
