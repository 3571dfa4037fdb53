//! Packages as they are unpacked most quickly. Debian packs them small, which takes long to undo; so what was unpacked once is kept
//! packed another way, as records of the bake, which may get lost.

use kiln_model::{Digest, canonical_json};
use kiln_oci::Store;

use crate::deb::{Deb, Repacked};
use crate::error::BakeError;
use crate::install::damaged;
use crate::lock::LockedPackage;

/// The largest package of Debian is some hundreds of megabytes.
const PACKAGE_LIMIT: u64 = 4 << 30;
/// A package that is larger unpacked is not held in memory for this.
const UNPACKED_LIMIT: u64 = 256 << 20;
/// Part of the keys: what packs them, and how.
const FORMAT: u32 = 2;

/// The package with its control files.
pub(crate) fn control(store: &Store, package: &LockedPackage) -> Result<Deb, BakeError> {
    member(store, package, "control.tar", &|| false)
}

/// The package with its data.
pub(crate) fn data(store: &Store, package: &LockedPackage) -> Result<Deb, BakeError> {
    member(store, package, "data.tar", &|| false)
}

/// Does it for packages that are unpacked later, the smallest first, until `stop` says that it is later.
pub(crate) fn ahead(store: &Store, packages: &[LockedPackage], stop: &(dyn Fn() -> bool + Sync)) {
    let mut packages: Vec<&LockedPackage> = packages.iter().collect();
    packages.sort_by_key(|package| package.size);
    for package in packages {
        if stop() {
            return;
        }
        // One that is not there yet, or is damaged, is its user's to tell.
        for member in ["control.tar", "data.tar"] {
            let _ = self::member(store, package, member, stop);
        }
    }
}

fn member(
    store: &Store,
    package: &LockedPackage,
    member: &str,
    stop: &dyn Fn() -> bool,
) -> Result<Deb, BakeError> {
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
    let repacked = deb
        .repacked(member, UNPACKED_LIMIT, stop)
        .map_err(damaged(package))?;
    match repacked {
        Some(Repacked { packed, plain }) => {
            store.cache_put(&key, &packed)?;
            Ok(plain)
        }
        None => Ok(deb),
    }
}
