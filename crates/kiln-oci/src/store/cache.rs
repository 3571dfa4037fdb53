//! Small records of the bake: from the key of a step to what it gave.
//!
//! Not synced, since losing one costs only a step: each begins with its own digest instead, so that one that a
//! power failure left incomplete counts as absent.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use kiln_model::Digest;

use super::Store;
use super::error::{StoreError, io_error};
use super::temp::TempFile;

impl Store {
    pub(super) fn cache_path(&self, key: &Digest) -> PathBuf {
        self.dir.join("cache").join(key.hex())
    }

    /// The record of `key`, if there is a whole one that can be read.
    pub fn cache_get(&self, key: &Digest) -> Option<Vec<u8>> {
        self.note(key);
        let mut file = File::open(self.cache_path(key)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        self.touch(&file);
        let digest: [u8; 32] = bytes.get(..32)?.try_into().ok()?;
        let record = bytes.split_off(32);
        (Digest::of(&record) == Digest::from_sha256(digest)).then_some(record)
    }

    /// Sets the record of `key`.
    pub fn cache_put(&self, key: &Digest, record: &[u8]) -> Result<(), StoreError> {
        self.note(key);
        let path = self.cache_path(key);
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(Digest::of(record).as_bytes())
            .and_then(|()| file.write_all(record))
            .map_err(io_error("write", &path))?;
        file.rename(&path)
    }
}
