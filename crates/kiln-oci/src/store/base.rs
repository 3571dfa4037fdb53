//! Which EROFS file of the store another layer may be the difference from.
//!
//! Beside each file that is a whole layer is a list of what is in it. Losing one costs space and nothing else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use kiln_model::Digest;

use super::Store;
use super::error::{StoreError, io_error};
use super::temp::TempFile;
use crate::difference::{Listing, is_worth_it};
use crate::layer::Tree;

/// The digest of what follows.
const HEADER: usize = 32;
/// The head of a list that is read to see whether the layers are alike.
const HEAD: u64 = 512;
/// The most alike are tried.
const TRIES: usize = 3;

impl Store {
    pub(super) fn listing_path(&self, erofs: &Digest) -> PathBuf {
        self.dir.join("erofs").join(format!("{}.list", erofs.hex()))
    }

    /// The EROFS file to put a difference over, and that difference.
    pub(super) fn base_for(
        &self,
        tree: &Tree,
        listing: &Listing,
    ) -> Result<Option<(Digest, Tree)>, StoreError> {
        if !is_worth_it(tree) {
            return Ok(None);
        }
        let prints = listing.prints();
        let mut alike = Vec::new();
        let entries = fs::read_dir(self.dir.join("erofs"));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".list"));
            let Some(erofs) = hex.and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            let mut head = Vec::new();
            let read = File::open(entry.path()).map(|file| file.take(HEAD).read_to_end(&mut head));
            if !matches!(read, Ok(Ok(_))) {
                continue;
            }
            let sketch = head.get(HEADER..).and_then(Listing::read_sketch);
            let sketch = sketch.unwrap_or_default();
            let common = sketch.iter().filter(|print| prints.contains(*print));
            let common = common.count();
            if common * 2 > sketch.len() {
                alike.push((std::cmp::Reverse(common), erofs));
            }
        }
        alike.sort();
        for (_, erofs) in alike.into_iter().take(TRIES) {
            if !self.can_be_mounted(&erofs) {
                continue;
            }
            let bytes = fs::read(self.listing_path(&erofs)).unwrap_or_default();
            let Some((digest, list)) = bytes.split_at_checked(HEADER) else {
                continue;
            };
            if digest != Digest::of(list).as_bytes() {
                continue;
            }
            let Some(base) = Listing::decode(list) else {
                continue;
            };
            if let Some(difference) = listing.difference(tree, &base)? {
                return Ok(Some((erofs, difference)));
            }
        }
        Ok(None)
    }

    pub(super) fn put_listing(&self, erofs: &Digest, listing: &Listing) -> Result<(), StoreError> {
        let path = self.listing_path(erofs);
        let list = listing.encode();
        let mut file = TempFile::create(&self.tmp())?;
        file.write_all(Digest::of(&list).as_bytes())
            .and_then(|()| file.write_all(&list))
            .map_err(io_error("write", &path))?;
        file.rename(&path)
    }
}
