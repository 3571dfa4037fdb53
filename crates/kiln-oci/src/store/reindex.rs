//! Finding out again which frames a blob has, where the list of them was lost, is damaged or of an older form.
//!
//! What the compressor makes of a frame's content is looked at, and not believed: only a frame that it would write so is one that
//! another blob may have. So a layer that others compressed is known by its first frames.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kiln_model::Digest;
use zstd::zstd_safe;

use super::Store;
use super::blob::Donor;
use super::compress::ZSTD_LEVEL;
use super::frames::{Place, Sums};

/// Blobs that are shorter are documents, or cost little.
const BLOB_MIN: u64 = 64 << 10;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// No frame of ours holds as much, nor is as long.
const FRAME_MAX: usize = 2 << 20;

impl Store {
    /// The blobs that may have frames, of those that `is_listed` does not know.
    pub(super) fn unlisted(&self, is_listed: impl Fn(&Digest) -> bool) -> Vec<Donor> {
        let mut found = Vec::new();
        for (folder, sparse) in [("blobs/sparse", true), ("blobs/sha256", false)] {
            let entries = fs::read_dir(self.dir.join(folder));
            for entry in entries.into_iter().flatten().flatten() {
                let name = entry.file_name();
                let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
                let Some(blob) = digest.filter(|digest| !is_listed(digest)) else {
                    continue;
                };
                let is_long = || entry.metadata().is_ok_and(|meta| meta.len() >= BLOB_MIN);
                if sparse || is_long() && begins_as_zstd(&entry.path()) {
                    found.push(Donor { blob, sparse });
                }
            }
        }
        found.sort_by_key(|donor| (donor.blob, donor.sparse));
        found.dedup_by_key(|donor| donor.blob);
        found
    }

    /// The frames in the file of `donor` that the compressor would write as they are. None: it can't be read.
    pub(super) fn find_frames(&self, donor: Donor) -> Option<Vec<(Digest, Place)>> {
        let file = File::open(self.donor_path(&donor)).ok()?;
        let end = self.own_length(&donor, &file)?;
        let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?;
        let mut found = Vec::new();
        let mut buffer = vec![0; FRAME_MAX];
        let mut offset = 0;
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let window = &mut buffer[..left.min(FRAME_MAX)];
            file.read_exact_at(window, offset).ok()?;
            let Ok(length) = zstd_safe::find_frame_compressed_size(window) else {
                break;
            };
            let frame = &window[..length];
            let content = zstd::bulk::decompress(frame, FRAME_MAX).unwrap_or_default();
            if compressor.compress(&content).ok().as_deref() != Some(frame) {
                break;
            }
            let place = Place {
                donor,
                offset,
                length: length as u32,
                sums: Sums {
                    content: crc32fast::hash(&content),
                    frame: crc32fast::hash(frame),
                },
            };
            found.push((Digest::of(&content), place));
            offset += length as u64;
        }
        Some(found)
    }
}

fn begins_as_zstd(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut start, 0));
    read.is_ok() && start == ZSTD
}
