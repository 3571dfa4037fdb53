//! Packages as they are unpacked most quickly. Debian packs them small, which takes long to undo; so what was unpacked once is kept
//! packed another way, as records of the bake, which may get lost.
//!
//! Packing takes a processor that the unpacking of other packages needs. So what is unpacked waits in memory until scripts run, which
//! hardly ever use more than one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_engine::memory;
use kiln_model::{Digest, canonical_json};
use kiln_oci::Store;

use crate::debian::deb::Deb;
use crate::debian::lock::{LockedPackage, damaged};
use crate::error::BakeError;

/// The largest package of Debian is some hundreds of megabytes.
const PACKAGE_LIMIT: u64 = 4 << 30;
/// A package that is larger unpacked is not held in memory for this.
const UNPACKED_LIMIT: u64 = 256 << 20;
/// Part of the keys: what packs them, and how.
const FORMAT: u32 = 2;
const CONTROL: &str = "control.tar";
const DATA: &str = "data.tar";

/// The packages of a bake.
pub(crate) struct Repacking<'a> {
    store: &'a Store,
    state: Mutex<State>,
}

struct State {
    /// Bytes that may still wait; `None`: nobody has asked yet.
    room: Option<u64>,
    /// By the key of what will be kept.
    waiting: BTreeMap<Digest, Waiting>,
}

#[derive(Clone)]
struct Waiting {
    member: &'static str,
    plain: Arc<Deb>,
}

impl<'a> Repacking<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self::with_room(store, None)
    }

    /// For who unpacks little: nothing waits.
    pub(crate) fn at_once(store: &'a Store) -> Self {
        Self::with_room(store, Some(0))
    }

    fn with_room(store: &'a Store, room: Option<u64>) -> Self {
        Self {
            store,
            state: Mutex::new(State {
                room,
                waiting: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The package with its control files.
    pub(crate) fn control(&self, package: &LockedPackage) -> Result<Arc<Deb>, BakeError> {
        self.member(package, CONTROL, &|| false)
    }

    /// The package with its data.
    pub(crate) fn data(&self, package: &LockedPackage) -> Result<Arc<Deb>, BakeError> {
        self.member(package, DATA, &|| false)
    }

    /// Unpacks what will be asked for later, the smallest first, until `stop` says that it is later.
    pub(crate) fn pack_ahead(&self, packages: &[LockedPackage], stop: &dyn Fn() -> bool) {
        let mut packages: Vec<&LockedPackage> = packages.iter().collect();
        packages.sort_by_key(|package| package.size);
        for package in packages {
            if stop() {
                return;
            }
            // One that is not there yet, or is damaged, is its user's to tell.
            for member in [CONTROL, DATA] {
                let _ = self.member(package, member, stop);
            }
        }
    }

    /// Packs what waits, until `stop` says that there is no more time. Losing what is left costs only time.
    pub(crate) fn keep(&self, stop: &dyn Fn() -> bool) {
        while !stop() {
            let Some((key, one)) = self.lock().waiting.pop_first() else {
                return;
            };
            let size = one.plain.size();
            if self.pack(&key, &one).is_err() {
                return;
            }
            drop(one);
            if let Some(room) = &mut self.lock().room {
                *room += size;
            }
        }
    }

    fn pack(&self, key: &Digest, one: &Waiting) -> Result<(), BakeError> {
        // What can't be packed is unpacked from Debian's form again.
        if let Ok(packed) = one.plain.packed(one.member) {
            self.store.cache_put(key, &packed)?;
        }
        Ok(())
    }

    fn member(
        &self,
        package: &LockedPackage,
        member: &'static str,
        stop: &dyn Fn() -> bool,
    ) -> Result<Arc<Deb>, BakeError> {
        let key = Digest::of(&canonical_json(&(
            "repacked",
            FORMAT,
            member,
            &package.sha256,
        ))?);
        if let Some(one) = self.lock().waiting.get(&key) {
            return Ok(one.plain.clone());
        }
        if let Some(bytes) = self.store.cache_get(&key) {
            return Ok(Arc::new(Deb::new(bytes)));
        }
        let deb = Deb::new(self.store.read_blob(&package.sha256, PACKAGE_LIMIT)?);
        let plain = deb
            .plain(member, UNPACKED_LIMIT, stop)
            .map_err(damaged(package))?;
        let Some(plain) = plain.map(Arc::new) else {
            return Ok(Arc::new(deb));
        };
        let one = Waiting {
            member,
            plain: plain.clone(),
        };
        if let Some(one) = self.wait(key, one) {
            self.pack(&key, &one)?;
        }
        Ok(plain)
    }

    /// Gives back what there is no room for.
    fn wait(&self, key: Digest, one: Waiting) -> Option<Waiting> {
        let mut state = self.lock();
        // Beside the folder in memory that packages are unpacked into, and what the scripts need.
        let room = state
            .room
            .get_or_insert_with(|| memory::available().unwrap_or(0) / 8);
        match room.checked_sub(one.plain.size()) {
            Some(left) => {
                *room = left;
                state.waiting.insert(key, one);
                None
            }
            None => Some(one),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::deb::tests::with_control;

    fn deb() -> Vec<u8> {
        let tar = with_control();
        let mut deb = b"!<arch>\n".to_vec();
        for member in [CONTROL, DATA] {
            deb.extend(format!("{member:<48}{:<10}`\n", tar.len()).bytes());
            deb.extend(&tar);
        }
        deb
    }

    #[test]
    fn what_is_unpacked_waits_until_there_is_time_to_pack_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let blob = store.put_bytes(&deb()).unwrap();
        let package = LockedPackage {
            name: "a".into(),
            version: "1".into(),
            arch: "amd64".into(),
            sha256: blob.digest,
            size: blob.size,
            path: "pool/a.deb".into(),
            base: false,
        };
        let records = || {
            let entries = std::fs::read_dir(store.dir().join("cache"));
            entries.map_or(0, Iterator::count)
        };
        let text = |deb: &Deb| deb.control().unwrap()["control"].clone();
        let repacking = Repacking::with_room(&store, Some(1 << 20));
        let first = repacking.control(&package).unwrap();
        assert_eq!(text(&first), b"text");
        assert!(Arc::ptr_eq(&first, &repacking.control(&package).unwrap()));
        repacking.keep(&|| true);
        assert_eq!(records(), 0);
        repacking.keep(&|| false);
        assert_eq!((records(), repacking.lock().room), (1, Some(1 << 20)));
        // Read as it was kept.
        assert_eq!(text(&repacking.control(&package).unwrap()), b"text");
        repacking.pack_ahead(std::slice::from_ref(&package), &|| true);
        assert!(repacking.lock().waiting.is_empty());
        repacking.pack_ahead(std::slice::from_ref(&package), &|| false);
        assert_eq!(repacking.lock().waiting.len(), 1);
        Repacking::at_once(&store).data(&package).unwrap();
        assert_eq!(records(), 2);
    }
}
