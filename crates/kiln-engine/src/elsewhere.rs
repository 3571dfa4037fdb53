//! Other circumstances for this process and what it starts, to find out what depends on them. The machine sees nothing of it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::sys;

/// Mounts of this process's own, and another name of the machine. To be called before there is a second thread.
pub fn enter(hostname: &str) -> io::Result<()> {
    sys::unshare_mounts()?;
    sys::unshare_names()?;
    sys::set_hostname(hostname)
}

/// A file system in memory at `folder`, of so many bytes, gone with this process.
pub fn in_memory(folder: &Path, bytes: u64) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    let options = format!("mode=0700,size={bytes}");
    sys::mount(
        Some(Path::new("kiln")),
        folder,
        Some("tmpfs"),
        flags,
        Some(OsStr::new(&options)),
    )
}
