//! Other circumstances for this process and what it starts, to find out what depends on them. The machine sees nothing of it.

use std::io;

use rustix::thread::UnshareFlags;

use crate::sys;

/// Mounts of this process's own, and another name of the machine. To be called before there is a second thread.
pub fn enter(hostname: &str) -> io::Result<()> {
    own_mounts()?;
    sys::unshare(UnshareFlags::NEWUTS)?;
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

/// A mount namespace of this process's own, where nothing that is mounted is seen outside.
pub(crate) fn own_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    sys::unshare(UnshareFlags::NEWNS)?;
    Ok(mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?)
}
