//! File systems in memory.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// Mounts one at `target`. `options` as in tmpfs(5); `""` for none.
pub(crate) fn mount_at(target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    Ok(mount("tmpfs", target, "tmpfs", flags, options.as_c_str())?)
}
