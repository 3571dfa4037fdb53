//! Opening a path of the caller's folder, and nothing outside of it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Opens a path below `context`, following no link.
pub(crate) fn beneath(context: &Path, from: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let folder = rustix::fs::open(
        context,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let from = if from.as_os_str().is_empty() {
        Path::new(".")
    } else {
        from
    };
    openat2(
        folder,
        from,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS,
    )
}
