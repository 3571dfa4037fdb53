//! A blob's bytes, wherever they are.
//!
//! Most blobs are a file of their own. One that shares bytes with others is sparse: a file with the bytes that no other
//! blob had, and behind them the list of its segments, each a range of that file or of another blob's. A segment always
//! names the file that holds the bytes, never a sparse blob's list: reading one never leads further than that.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_model::Digest;

use super::Store;
use super::error::{StoreError, io_error};
use crate::blob_file::{BlobFile, Segment};

/// The end of a sparse blob's file.
const MAGIC: &[u8; 8] = b"kilnspr1";
/// Behind the list: how many donors and segments, and the mark.
const FOOTER: usize = 4 + 4 + 8;
const SEGMENT: usize = 4 + 8 + 8;
const DONOR: usize = 1 + 32;
/// More files than this a blob does not lean on: they are all open while it is read.
pub(super) const DONORS_MAX: usize = 200;

/// A file of the store that holds bytes of blobs: a blob's own, or that of a sparse one. A blob may have both, after one
/// that it shared bytes with was lost and it came again; others may then still have bytes of the sparse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Donor {
    pub(super) blob: Digest,
    pub(super) sparse: bool,
}

/// What a sparse blob is made of.
#[derive(Debug, Default)]
pub(super) struct Recipe {
    pub(super) donors: Vec<Donor>,
    pub(super) segments: Vec<Segment>,
}

impl Recipe {
    /// Adds a segment, to the last one where it goes on there.
    pub(super) fn push(&mut self, segment: Segment) {
        match self.segments.last_mut() {
            Some(last)
                if last.source == segment.source && last.offset + last.length == segment.offset =>
            {
                last.length += segment.length;
            }
            _ => self.segments.push(segment),
        }
    }

    /// The number by which segments name `donor`; none where there are too many already.
    pub(super) fn source(&mut self, donor: &Donor) -> Option<u32> {
        if let Some(at) = self.donors.iter().position(|known| known == donor) {
            return Some(at as u32 + 1);
        }
        if self.donors.len() == DONORS_MAX {
            return None;
        }
        self.donors.push(*donor);
        Some(self.donors.len() as u32)
    }

    /// Whether it says anything but "the own file".
    pub(super) fn is_needed(&self) -> bool {
        let own = |segment: &Segment| segment.source == 0 && segment.offset == 0;
        match self.segments.as_slice() {
            [] => false,
            [only] => !own(only),
            _ => true,
        }
    }

    fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for donor in &self.donors {
            out.push(donor.sparse.into());
            out.extend_from_slice(donor.blob.as_bytes());
        }
        for segment in &self.segments {
            out.extend_from_slice(&segment.source.to_le_bytes());
            out.extend_from_slice(&segment.offset.to_le_bytes());
            out.extend_from_slice(&segment.length.to_le_bytes());
        }
        out.extend_from_slice(&(self.donors.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        out.extend_from_slice(MAGIC);
        out
    }

    /// The recipe at the end of `file`. Damage is an error of kind `InvalidData`.
    fn read(file: &File) -> io::Result<Self> {
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the list of its parts is damaged",
            )
        };
        let length = file.metadata()?.len();
        let start = length.checked_sub(FOOTER as u64).ok_or_else(damaged)?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, start)?;
        let (donors, segments) = (number32(&footer[0..4]), number32(&footer[4..8]));
        if &footer[8..] != MAGIC || donors as usize > DONORS_MAX {
            return Err(damaged());
        }
        let list = u64::from(donors) * DONOR as u64 + u64::from(segments) * SEGMENT as u64;
        let start = start.checked_sub(list).ok_or_else(damaged)?;
        let mut bytes = vec![0; usize::try_from(list).map_err(|_| damaged())?];
        file.read_exact_at(&mut bytes, start)?;
        let (donor_bytes, segment_bytes) = bytes.split_at(donors as usize * DONOR);
        let mut recipe = Self::default();
        for bytes in donor_bytes.chunks_exact(DONOR) {
            let digest: [u8; 32] = bytes[1..].try_into().map_err(|_| damaged())?;
            recipe.donors.push(Donor {
                blob: Digest::from_sha256(digest),
                sparse: bytes[0] != 0,
            });
        }
        for bytes in segment_bytes.chunks_exact(SEGMENT) {
            let segment = Segment {
                source: number32(&bytes[0..4]),
                offset: number64(&bytes[4..12]),
                length: number64(&bytes[12..20]),
            };
            if segment.source > donors || segment.offset.checked_add(segment.length).is_none() {
                return Err(damaged());
            }
            recipe.segments.push(segment);
        }
        Ok(recipe)
    }
}

pub(super) fn number32(bytes: &[u8]) -> u32 {
    let low = bytes.iter().rev();
    low.fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

pub(super) fn number64(bytes: &[u8]) -> u64 {
    let low = bytes.iter().rev();
    low.fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

impl Store {
    /// Where the blob is, or would be, as a file of its own. A sparse one is elsewhere: see [`Store::open_blob`].
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// The file that the blob is read from: its own one, else the sparse one's.
    pub(super) fn stored_path(&self, digest: &Digest) -> PathBuf {
        let (own, sparse) = (self.blob_path(digest), self.sparse_path(digest));
        if !own.is_file() && sparse.is_file() {
            sparse
        } else {
            own
        }
    }

    pub(super) fn sparse_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sparse").join(digest.hex())
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.note(digest);
        self.blob_path(digest).is_file() || self.sparse_path(digest).is_file()
    }

    pub fn blob_size(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.note(digest);
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(self.sparse(digest)?.1.size())
            }
            Err(error) => Err(io_error("examine", &path)(error)),
        }
    }

    /// Opens a blob for reading. What is read is not checked: see [`Store::verify_blob`].
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobFile, StoreError> {
        self.note(digest);
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => {
                self.touch(&file);
                let length = file.metadata().map_err(io_error("examine", &path))?.len();
                let whole = Segment {
                    source: 0,
                    offset: 0,
                    length,
                };
                Ok(BlobFile::new(vec![file], &[whole]))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (own, recipe) = self.sparse(digest)?;
                self.open_recipe(digest, own, &recipe)
            }
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }

    /// The blob `digest` of this recipe, with its own file. `digest` is for errors.
    pub(super) fn open_recipe(
        &self,
        digest: &Digest,
        own: File,
        recipe: &Recipe,
    ) -> Result<BlobFile, StoreError> {
        let mut files = vec![own];
        for donor in &recipe.donors {
            let path = self.donor_path(donor);
            match File::open(&path) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(StoreError::DonorMissing {
                        digest: *digest,
                        donor: donor.blob,
                    });
                }
                Err(error) => return Err(io_error("open", &path)(error)),
            }
        }
        Ok(BlobFile::new(files, &recipe.segments))
    }

    pub(super) fn donor_path(&self, donor: &Donor) -> PathBuf {
        if donor.sparse {
            self.sparse_path(&donor.blob)
        } else {
            self.blob_path(&donor.blob)
        }
    }

    /// The own file of a sparse blob, and what it is made of.
    fn sparse(&self, digest: &Digest) -> Result<(File, Recipe), StoreError> {
        let path = self.sparse_path(digest);
        let file = File::open(&path).map_err(missing(*digest, &path, "open"))?;
        let recipe = Recipe::read(&file).map_err(io_error("read", &path))?;
        Ok((file, recipe))
    }

    /// The other files that hold bytes of a blob.
    pub(super) fn donors(&self, digest: &Digest) -> Result<Vec<Donor>, StoreError> {
        match self.sparse(digest) {
            Ok((_, recipe)) => Ok(recipe.donors),
            // It has all of its bytes itself, or is not there.
            Err(StoreError::BlobMissing { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The bytes of the file of `donor` that are frames: behind those of a sparse one is its list.
    pub(super) fn own_length(&self, donor: &Donor, file: &File) -> Option<u64> {
        let length = file.metadata().ok()?.len();
        if !donor.sparse {
            return Some(length);
        }
        let list = Recipe::read(file).ok()?.encode().len() as u64;
        length.checked_sub(list)
    }

    /// Whether all files that a blob of `size` bytes is made of are there, and long enough.
    pub(super) fn is_whole(&self, digest: &Digest, size: u64) -> bool {
        let Ok(blob) = self.open_blob(digest) else {
            return false;
        };
        blob.size() == size && blob.has_all_bytes()
    }
}

pub(super) fn missing(
    digest: Digest,
    path: &Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::BlobMissing { digest },
        _ => io_error(action, path)(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_read_as_it_was_written_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let mut recipe = Recipe::default();
        let donor = recipe
            .source(&Donor {
                blob: Digest::of(b"donor"),
                sparse: true,
            })
            .unwrap();
        for (source, offset, length) in [(0, 0, 5), (0, 5, 2), (donor, 1 << 40, 7), (0, 0, 1)] {
            recipe.push(Segment {
                source,
                offset,
                length,
            });
        }
        assert_eq!((recipe.segments.len(), recipe.size()), (3, 15));
        let bytes = [b"own byt".to_vec(), recipe.encode()].concat();
        fs::write(&path, &bytes).unwrap();
        let read = Recipe::read(&File::open(&path).unwrap()).unwrap();
        assert_eq!(
            (read.donors, read.segments),
            (recipe.donors, recipe.segments)
        );
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..10], &bytes[40..], b""] {
            fs::write(&path, damaged).unwrap();
            assert!(Recipe::read(&File::open(&path).unwrap()).is_err());
        }
    }
}
