//! The keys of steps in the cache.

use std::io::{BufWriter, Write};

use kiln_model::{CanonicalError, Digest};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The digest of a step's inputs: of their JSON, with members in the order of their declaration. The canonical form takes several
/// times as long for the ten thousand files of a copy, and no other program has to find these keys.
pub(crate) fn digest_of(inputs: &impl Serialize) -> Result<Digest, CanonicalError> {
    let mut out = BufWriter::with_capacity(16 << 10, Hashing(Sha256::new()));
    serde_json::to_writer(&mut out, inputs).map_err(CanonicalError::Json)?;
    let hashed = out.into_inner().map_err(|error| error.into_error());
    let Hashing(hasher) =
        hashed.map_err(|error| CanonicalError::Json(serde_json::Error::io(error)))?;
    Ok(Digest::from_sha256(hasher.finalize().into()))
}

/// The JSON is megabytes, and only its digest wanted.
struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
