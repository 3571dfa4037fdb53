//! What a file of a layer contains: named when the layer is described, read when it is written.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::blob_file::BlobFile;
use crate::known_file::{KnownFile, Stamp};
use crate::layer_error::{LayerError, to_path};

/// Where the bytes of a file are. Opened without following symbolic links.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Arc<[u8]>),
    /// A file on disk; its last component must not be a symbolic link.
    Path(PathBuf),
    /// A file below an open directory; no component may be a symbolic link.
    Under {
        dir: Arc<OwnedFd>,
        path: PathBuf,
    },
    /// As `Under`, of which is known what it holds.
    Known {
        dir: Arc<OwnedFd>,
        path: PathBuf,
        file: Arc<KnownFile>,
    },
    /// From `offset` on in an open file, such as a spilled tar stream.
    Range {
        file: Arc<File>,
        offset: u64,
    },
    /// A blob of the store.
    Blob(BlobFile),
}

/// A file's content, opened.
pub enum Reader<'a> {
    Bytes(&'a [u8]),
    File { file: File },
    Known { file: File, stamp: Stamp },
    Range { file: &'a File, offset: u64 },
    Blob(&'a BlobFile),
}

impl Content {
    pub fn open(&self) -> io::Result<Reader<'_>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(match self {
            Self::Bytes(bytes) => Reader::Bytes(bytes),
            Self::Path(path) => Reader::File {
                file: File::from(rustix::fs::open(path, flags, Mode::empty())?),
            },
            Self::Under { dir, path } => Reader::File {
                file: under(dir, path, flags)?,
            },
            Self::Known { dir, path, file } => Reader::Known {
                file: under(dir, path, flags)?,
                stamp: file.stamp,
            },
            Self::Range { file, offset } => Reader::Range {
                file,
                offset: *offset,
            },
            Self::Blob(blob) => Reader::Blob(blob),
        })
    }
}

fn under(dir: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let fd = rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)?;
    Ok(File::from(fd))
}

impl Reader<'_> {
    /// Whether what was read so far is what the file is known to hold. Where nothing is known, it is.
    pub fn is_as_known(&self) -> io::Result<bool> {
        match self {
            Self::Known { file, stamp } => Ok(Stamp::of_file(file)? == *stamp),
            Self::Bytes(_) | Self::File { .. } | Self::Range { .. } | Self::Blob(_) => Ok(true),
        }
    }

    /// As `read_at`, of a file of `size` bytes: a range does not know where it ends.
    pub fn read_within(&self, size: u64, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.read_at(&mut buffer[..length], at)
    }

    /// Fills `buffer` from `at` on; fewer bytes than asked only at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let read = |buffer: &mut [u8], at: u64| match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
                let count = buffer.len().min(bytes.len() - start);
                buffer[..count].copy_from_slice(&bytes[start..start + count]);
                Ok(count)
            }
            Self::File { file } | Self::Known { file, .. } => file.read_at(buffer, at),
            Self::Range { file, offset } => file.read_at(buffer, offset + at),
            Self::Blob(blob) => blob.read_at(buffer, at),
        };
        let mut filled = 0;
        while filled < buffer.len() {
            match read(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Copies `length` bytes from `start` on of `content` to `out`, by way of `buffer`. `path` is for errors.
pub(crate) fn copy_content(
    path: &[u8],
    content: &Content,
    start: u64,
    length: u64,
    buffer: &mut [u8],
    out: &mut impl io::Write,
) -> Result<(), LayerError> {
    if length == 0 {
        return Ok(());
    }
    let io_error = |action| {
        move |source| LayerError::Io {
            action,
            path: to_path(path).to_path_buf(),
            source,
        }
    };
    let reader = content.open().map_err(io_error("open"))?;
    let mut done = 0;
    while done < length {
        let want = usize::try_from(length - done).map_or(buffer.len(), |n| n.min(buffer.len()));
        let count = reader
            .read_at(&mut buffer[..want], start + done)
            .map_err(io_error("read"))?;
        if count == 0 {
            return Err(LayerError::ContentChanged {
                path: to_path(path).to_path_buf(),
                expected: start + length,
                actual: start + done,
            });
        }
        out.write_all(&buffer[..count]).map_err(LayerError::Write)?;
        done += count as u64;
    }
    if !reader.is_as_known().map_err(io_error("examine"))? {
        return Err(LayerError::ContentDiffers {
            path: to_path(path).to_path_buf(),
        });
    }
    Ok(())
}

/// Reads at most `limit` bytes; one more than it is an error of the caller's choice.
pub(crate) fn read_bounded(reader: impl Read, limit: u64, bytes: &mut Vec<u8>) -> io::Result<bool> {
    reader.take(limit + 1).read_to_end(bytes)?;
    Ok(bytes.len() as u64 <= limit)
}
