//! Files of which is known what they hold, as long as they are as they were when somebody read them.

use std::fs::File;
use std::io;

use kiln_model::Digest;
use rustix::fs::Stat;

/// A change within a large file costs one piece. Shorter ones compress worse, which begins to show below this.
pub(crate) const PIECE: usize = 512 << 10;
/// Files from this size on have frames of their own.
pub(crate) const LARGE: u64 = 128 << 10;

/// What of a file's stat data changes with its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    pub const NUMBERS: usize = 7;

    // The fields have other types on other architectures.
    #[allow(clippy::unnecessary_cast)]
    pub fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// Of an open file, now.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn inode(&self) -> u64 {
        self.ino
    }

    /// When the content was changed last, in seconds and nanoseconds since 1970.
    pub fn modified(&self) -> (i64, i64) {
        self.mtime
    }

    /// When anything was changed last, likewise.
    pub fn changed(&self) -> (i64, i64) {
        self.ctime
    }

    /// The same on every day, to be kept.
    pub fn numbers(&self) -> [u64; Self::NUMBERS] {
        [
            self.dev,
            self.ino,
            self.size,
            self.mtime.0.cast_unsigned(),
            self.mtime.1.cast_unsigned(),
            self.ctime.0.cast_unsigned(),
            self.ctime.1.cast_unsigned(),
        ]
    }

    pub fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [dev, ino, size, mtime, mtime_ns, ctime, ctime_ns] = numbers;
        Self {
            dev,
            ino,
            size,
            mtime: (mtime.cast_signed(), mtime_ns.cast_signed()),
            ctime: (ctime.cast_signed(), ctime_ns.cast_signed()),
        }
    }

    /// When it was changed last, in nanoseconds since 1970: the later of both times.
    pub fn changed_ns(&self) -> i128 {
        let nanos = |(s, ns): (i64, i64)| i128::from(s) * 1_000_000_000 + i128::from(ns);
        nanos(self.mtime).max(nanos(self.ctime))
    }
}

/// What a file holds while its stat data is `stamp`. Whoever reads it looks at the stat data again afterwards.
#[derive(Clone, Debug)]
pub struct KnownFile {
    pub stamp: Stamp,
    /// Of the parts of [`KnownFile::PIECE`] bytes, the last one shorter; none of an empty file.
    pub pieces: Box<[Digest]>,
}

impl KnownFile {
    pub const PIECE: usize = PIECE;

    /// What the content is known by: its digest, or that of the digests of its pieces where it has several.
    pub fn content(&self) -> Digest {
        Self::content_of(&self.pieces)
    }

    pub fn content_of(pieces: &[Digest]) -> Digest {
        match pieces {
            [] => Digest::of(b""),
            [only] => *only,
            several => {
                let bytes: Vec<u8> = several.iter().flat_map(|piece| *piece.as_bytes()).collect();
                Digest::of(&bytes)
            }
        }
    }
}
