//! Other circumstances for this process and what it starts, to find out what depends on them. The machine sees nothing of it.

use std::io;

use crate::sys;

/// Mounts of this process's own, and another name of the machine. To be called before there is a second thread.
pub fn enter(hostname: &str) -> io::Result<()> {
    sys::unshare_mounts()?;
    sys::unshare_names()?;
    sys::set_hostname(hostname)
}
