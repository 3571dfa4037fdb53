//! Which pieces of large files the store's EROFS files have: beside each file, a list of what it holds itself.
//!
//! As with the frames of blobs, losing one costs space and nothing else.

use std::fs::{self, File};
use std::io::Write;

use kiln_model::Digest;

use super::Store;
use super::blob::number32;
use super::error::{StoreError, io_error};
use super::temp::TempFile;
use crate::erofs::{self, Donor, Extent, Pieces, Sharing};
use crate::layer::Tree;

/// The digest of what follows.
const HEADER: usize = 32;
/// Piece, block.
const ENTRY: usize = 32 + 4;

impl Store {
    pub(super) fn extents_path(&self, erofs: &Digest) -> std::path::PathBuf {
        let name = format!("{}.extents", erofs.hex());
        self.dir.join("erofs").join(name)
    }

    /// What of `tree` the store's EROFS files have. Files that cannot be read are left out.
    pub(super) fn sharing(&self, tree: &Tree, pieces: Pieces) -> Sharing {
        let wanted = pieces.blocks(tree);
        let mut found = Vec::new();
        let entries = fs::read_dir(self.dir.join("erofs"));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".extents"));
            let Some(digest) = hex.and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            let mut has = fs::read(entry.path()).map_or_else(|_| Vec::new(), |bytes| read(&bytes));
            has.retain(|(piece, _)| wanted.contains_key(piece));
            if has.is_empty() {
                continue;
            }
            self.note(&digest);
            // Written before its list: a list without a file was left behind.
            let blocks = File::open(self.erofs_path(&digest)).and_then(|file| erofs::blocks(&file));
            if let Ok(Some(blocks)) = blocks {
                let donor = Donor {
                    erofs: digest,
                    blocks,
                };
                has.retain(|(piece, block)| block + wanted[piece] <= donor.blocks);
                found.push((donor, has));
            }
        }
        Sharing::choose(pieces, &wanted, found)
    }

    pub(super) fn put_extents(&self, erofs: &Digest, extents: &[Extent]) -> Result<(), StoreError> {
        if extents.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(extents.len() * ENTRY);
        for Extent { piece, block } in extents {
            entries.extend_from_slice(piece.as_bytes());
            entries.extend_from_slice(&(*block as u32).to_le_bytes());
        }
        let path = self.extents_path(erofs);
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(Digest::of(&entries).as_bytes())
            .and_then(|()| file.write_all(&entries))
            .map_err(io_error("write", &path))?;
        file.rename(&path)
    }
}

fn read(bytes: &[u8]) -> Vec<(Digest, u64)> {
    let Some((head, entries)) = bytes.split_at_checked(HEADER) else {
        return Vec::new();
    };
    if head != Digest::of(entries).as_bytes() {
        return Vec::new();
    }
    let entry = |entry: &[u8]| {
        let piece = entry[..32].try_into().map(Digest::from_sha256).ok()?;
        Some((piece, number32(&entry[32..]).into()))
    };
    entries.chunks_exact(ENTRY).filter_map(entry).collect()
}
