//! Small records of the bake: from the key of a step to what it gave.
//!
//! Not synced, since losing one costs only a step: each begins with its own digest instead, so that one that a
//! power failure left incomplete counts as absent.

use std::fs::File;
use std::io::{self, Read, Write};
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
        // What cannot be read is made again.
        self.cache_read(key).ok().flatten()
    }

    /// The same for who must know what is there: an error when it can't be read.
    pub(super) fn cache_read(&self, key: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.cache_path(key);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io_error("open", &path))?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        self.touch(&file);
        let Some((digest, record)) = bytes.split_first_chunk::<32>() else {
            return Ok(None);
        };
        let is_whole = Digest::of(record) == Digest::from_sha256(*digest);
        Ok(is_whole.then(|| record.to_vec()))
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
