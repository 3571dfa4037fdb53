//! Packages as they are unpacked most quickly. Debian packs them small, which takes long to undo; so what was unpacked once is kept
//! packed another way, as records of the bake, which may get lost.

use kiln_model::{Digest, canonical_json};
use kiln_oci::Store;

use crate::deb::Deb;
use crate::error::BakeError;
use crate::install::damaged;
use crate::lock::LockedPackage;

/// The largest package of Debian is some hundreds of megabytes.
const PACKAGE_LIMIT: u64 = 4 << 30;
/// A package that is larger unpacked is not held in memory for this.
const UNPACKED_LIMIT: u64 = 256 << 20;
/// Part of the keys: what packs them, and how.
const FORMAT: u32 = 1;

/// The package with its control files.
pub(crate) fn control(store: &Store, package: &LockedPackage) -> Result<Deb, BakeError> {
    member(store, package, "control.tar")
}

/// The package with its data.
pub(crate) fn data(store: &Store, package: &LockedPackage) -> Result<Deb, BakeError> {
    member(store, package, "data.tar")
}

fn member(store: &Store, package: &LockedPackage, member: &str) -> Result<Deb, BakeError> {
    let key = Digest::of(&canonical_json(&(
        "repacked",
        FORMAT,
        member,
        &package.sha256,
    ))?);
    if let Some(bytes) = store.cache_get(&key) {
        return Ok(Deb::new(bytes));
    }
    let deb = Deb::new(store.read_blob(&package.sha256, PACKAGE_LIMIT)?);
    match deb
        .repacked(member, UNPACKED_LIMIT)
        .map_err(damaged(package))?
    {
        Some(bytes) => {
            store.cache_put(&key, &bytes)?;
            Ok(Deb::new(bytes))
        }
        None => Ok(deb),
    }
}
