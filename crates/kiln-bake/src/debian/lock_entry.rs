//! Which entry of the lock an image has, and whether that entry says all that the image is made of.

use kiln_model::{DebianOrigin, DebianSpec, ImageName, ImageSpec};

use crate::arch;
use crate::debian::lock::{ImageLock, Lock, Options};

impl Lock {
    /// Whether it says all that the image is made of.
    pub fn covers(&self, image: &ImageSpec) -> bool {
        let entry = self.images.get(first(image));
        let debian = image.debian.as_ref();
        debian.is_none_or(|debian| entry.is_some_and(|entry| fits(entry, debian)))
    }
}

/// Whose packages the image has, and its entry in the lock is: an image and its base are never of two days.
pub(crate) fn first(image: &ImageSpec) -> &ImageName {
    image.chain().first().map_or(&image.name, |base| &base.name)
}

pub(crate) fn requested(debian: &DebianSpec) -> Vec<String> {
    let mut requested = debian.packages.clone();
    requested.sort();
    requested.dedup();
    requested
}

/// Debian's name of the processor that the image is for.
pub(crate) fn arch_of(debian: &DebianSpec) -> &str {
    debian.arch.as_deref().unwrap_or(arch::arch())
}

pub(crate) fn options(debian: &DebianSpec) -> Options {
    let components = match &debian.components[..] {
        [main] if main == "main" => Vec::new(),
        other => other.to_vec(),
    };
    Options {
        components,
        recommends: debian.recommends,
        without_updates: !debian.updates,
        without_security: !debian.security,
        snapshot: match &debian.origin {
            DebianOrigin::Snapshot { url, .. } => url.rsplit('/').next().map(str::to_owned),
            DebianOrigin::Machine | DebianOrigin::Mirror { .. } => None,
        },
    }
}

pub(crate) fn fits(lock: &ImageLock, debian: &DebianSpec) -> bool {
    // Older versions of kiln locked images whose archive has no security fixes.
    let has_fixes = debian
        .security_suite()
        .is_none_or(|suite| !lock.absent.contains(&suite));
    is_kin(lock, debian)
        && has_fixes
        && lock.requested == requested(debian)
        && lock.options == options(debian)
}

/// Whether packages of the entry may be packages of the image.
pub(crate) fn is_kin(lock: &ImageLock, debian: &DebianSpec) -> bool {
    lock.suite == debian.suite
        && lock.arch == arch_of(debian)
        && lock.options.snapshot == options(debian).snapshot
}
