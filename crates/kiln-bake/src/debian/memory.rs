//! How much memory the steps of packages may use in place of the disk.

use kiln_engine::memory;

use crate::debian::lock::LockedPackage;

/// Packages take about four times as much room unpacked; their scripts may write as much again.
const GROWS_TO: u64 = 6;
/// What scripts write where there are few packages.
const AT_LEAST: u64 = 64 << 20;

/// How large a folder in memory may become in which these packages are unpacked and configured; none where the disk is the better
/// place.
pub(crate) fn in_memory(packages: &[LockedPackage]) -> Option<u64> {
    room(packages, memory::available()?)
}

fn room(packages: &[LockedPackage], available: u64) -> Option<u64> {
    let size: u64 = packages.iter().map(|package| package.size).sum();
    let needed = size.checked_mul(GROWS_TO)?.max(AT_LEAST);
    // What it holds is also read from there, and the programs that run meanwhile need memory too.
    (needed <= available / 4).then_some(available / 2)
}

#[cfg(test)]
mod tests {
    use kiln_model::Digest;

    use super::*;

    #[test]
    fn only_what_is_small_beside_the_memory_is_unpacked_there() {
        let package = |size| LockedPackage {
            name: "a".into(),
            version: "1".into(),
            arch: "amd64".into(),
            sha256: Digest::of(b"a"),
            size,
            path: "pool/a.deb".into(),
            base: false,
        };
        let both = [package(40 << 20), package(10 << 20)];
        assert_eq!(room(&both, 1200 << 20), Some(600 << 20));
        assert_eq!(room(&both, 1196 << 20), None);
        assert_eq!(room(&[], 256 << 20), Some(128 << 20));
        assert_eq!(room(&[], 255 << 20), None);
        assert_eq!(room(&[package(u64::MAX)], u64::MAX), None);
    }
}
