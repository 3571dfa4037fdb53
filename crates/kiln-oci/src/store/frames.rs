//! Which frames the store has: from the digest of what a frame unpacks to, to where its compressed bytes are.
//!
//! One file a blob, with the frames that its own file holds, all read when a layer is added. One that is lost is made
//! again; so they are not synced, and begin with their own digest as the bake's records do. Of another version of the
//! compressor nothing is used: a layer's blob is to be the same whatever else the store has.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use kiln_model::Digest;

use super::Store;
use super::blob::{Donor, number32, number64};
use super::compress::ZSTD_LEVEL;
use super::error::{StoreError, io_error};
use super::temp::TempFile;

const HEADER: usize = 1 + 4 + 4 + 32;
/// Content, its sum, the frame's sum, offset, length.
const ENTRY: usize = 32 + 4 + 4 + 8 + 4;
/// Of the form of these files: others are not used.
const FORM: u8 = 2;

/// Where a frame's compressed bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) donor: Donor,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) sums: Sums,
}

/// CRC-32, as gzip has it: not against malice, which would have to write to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    /// Of what the frame unpacks to.
    pub(super) content: u32,
    /// Of the compressed bytes, so that damage is not passed on to a new blob.
    pub(super) frame: u32,
}

/// By the digest of the content.
pub(super) type Frames = HashMap<Digest, Place>;

impl Store {
    pub(super) fn frames_path(&self, blob: &Digest) -> PathBuf {
        self.dir.join("frames").join(blob.hex())
    }

    /// All frames of the store. Lists that are lost are made again; what can't be read is left out.
    pub(super) fn frames(&self) -> Frames {
        let mut frames = Frames::new();
        let mut listed = HashSet::new();
        let entries = fs::read_dir(self.dir.join("frames"));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
            if let (Some(blob), Ok(bytes)) = (digest, fs::read(entry.path()))
                && read_index(blob, &bytes, &mut frames)
            {
                listed.insert(blob);
            }
        }
        for donor in self.unlisted(|blob| listed.contains(blob)) {
            self.note(&donor.blob);
            let found = self.find_frames(donor).unwrap_or_default();
            // One without frames is listed as such, and not looked at again.
            #[expect(
                clippy::let_underscore_must_use,
                reason = "what can't be kept is found again"
            )]
            let _ = self.put_frames(&donor, found.iter().copied());
            frames.extend(found);
        }
        frames
    }

    /// Remembers the frames that a blob's file holds.
    pub(super) fn put_frames(
        &self,
        donor: &Donor,
        frames: impl Iterator<Item = (Digest, Place)>,
    ) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for (content, place) in frames {
            entries.extend_from_slice(content.as_bytes());
            entries.extend_from_slice(&place.sums.content.to_le_bytes());
            entries.extend_from_slice(&place.sums.frame.to_le_bytes());
            entries.extend_from_slice(&place.offset.to_le_bytes());
            entries.extend_from_slice(&place.length.to_le_bytes());
        }
        let path = self.frames_path(&donor.blob);
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(&header(donor.sparse, &entries))
            .and_then(|()| file.write_all(&entries))
            .map_err(io_error("write", &path))?;
        file.rename(&path)
    }
}

/// Which file it speaks of, the compressor, and the digest of what follows.
fn header(sparse: bool, entries: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.push(FORM << 1 | u8::from(sparse));
    out.extend_from_slice(&zstd::zstd_safe::version_number().to_le_bytes());
    out.extend_from_slice(&ZSTD_LEVEL.to_le_bytes());
    out.extend_from_slice(Digest::of(entries).as_bytes());
    out
}

/// False: it is none of this form.
fn read_index(blob: Digest, bytes: &[u8], frames: &mut Frames) -> bool {
    let Some((head, entries)) = bytes.split_at_checked(HEADER) else {
        return false;
    };
    let donor = Donor {
        blob,
        sparse: head[0] & 1 != 0,
    };
    if head != header(donor.sparse, entries) {
        return false;
    }
    let digest = |bytes: &[u8]| bytes.try_into().map(Digest::from_sha256);
    for entry in entries.chunks_exact(ENTRY) {
        let Ok(content) = digest(&entry[0..32]) else {
            continue;
        };
        let place = Place {
            donor,
            offset: number64(&entry[40..48]),
            length: number32(&entry[48..52]),
            sums: Sums {
                content: number32(&entry[32..36]),
                frame: number32(&entry[36..40]),
            },
        };
        frames.insert(content, place);
    }
    true
}
