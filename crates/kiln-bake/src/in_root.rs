//! Looking into an image that is mounted: links count from its root, and nothing larger than expected is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What is renamed or mounted anywhere on the machine ends a look-up through `..` (openat2(2), EAGAIN), which is then tried again.
const TRIES: usize = 1000;

/// Opens `path` inside `root`, links followed inside it.
pub(crate) fn open(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let folder = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match rustix::fs::openat2(&folder, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// A whole file, of any size.
pub(crate) fn bytes(root: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file; `None` where it is not there, no file, or larger than `limit`.
pub(crate) fn text(root: &Path, path: &Path, limit: u64) -> io::Result<Option<String>> {
    // A named pipe would otherwise be waited for.
    let file = match open(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > limit {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    // A circle of links leads nowhere either.
    let circle = Errno::LOOP.raw_os_error();
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    gone.contains(&error.kind()) || error.raw_os_error() == Some(circle)
}
