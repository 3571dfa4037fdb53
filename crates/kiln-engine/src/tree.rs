//! Trees of files, copied.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::path::Path;

/// Copies what is in the folder `from` into the folder `to`, with owners and modes, and without times and attributes. Sockets, pipes
/// and devices are left out: they are made by the program that uses them. What is copied stays when it fails.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let there = fs::symlink_metadata(&source)?;
        if there.is_symlink() {
            symlink(fs::read_link(&source)?, &copy)?;
            lchown(&copy, Some(there.uid()), Some(there.gid()))?;
            continue;
        }
        if there.is_dir() {
            fs::create_dir(&copy)?;
            copy_tree(&source, &copy)?;
        } else if there.is_file() {
            fs::copy(&source, &copy)?;
        } else {
            continue;
        }
        // Setting the owner takes set-uid bits away, so the mode comes last.
        chown(&copy, Some(there.uid()), Some(there.gid()))?;
        fs::set_permissions(&copy, there.permissions())?;
    }
    Ok(())
}
