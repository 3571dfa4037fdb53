//! Removing what nothing needs.
//!
//! Needed is what a tag, a living session or the caller names, and what that is made of, down to the files that it shares
//! bytes with. All else is kept for the next bake only: the most recently used of it, as far as the caller wishes.
//!
//! What refers goes before what it refers to, and the folders are synced between: killed at any instant, and after a
//! power failure, no record speaks of what is gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_model::Digest;
use serde::Serialize;

use super::error::{StoreError, io_error};
use super::{DOCUMENT_MAX, Store};
use crate::erofs;
use crate::image::{ImageConfig, Manifest};

/// What of the unneeded stays. With neither limit, nothing does.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// In bytes.
    pub keep_storage: Option<u64>,
    /// Since its last use.
    pub older_than: Option<Duration>,
    /// Only say it.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The images among it.
    pub images: Vec<Digest>,
    pub files: u64,
    /// On the disk, in bytes, as all of these.
    pub freed: u64,
    /// What is needed.
    pub needed: u64,
    /// What is kept although nothing needs it.
    pub cache: u64,
}

/// Something that is kept or removed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Item {
    /// A record of the bake, by its key.
    Record(Digest),
    /// The record of an image, and what is said about it.
    Image(Digest),
    /// Which EROFS file a layer has, by its diff id.
    Layer(Digest),
    Erofs(Digest),
    Blob(Digest),
}

impl Item {
    /// Everything that a digest can be of.
    fn all(digest: Digest) -> [Self; 5] {
        [
            Self::Record(digest),
            Self::Image(digest),
            Self::Layer(digest),
            Self::Erofs(digest),
            Self::Blob(digest),
        ]
    }
}

impl Store {
    /// Removes what nothing needs, beside bakes that run. `in_use` names images, layers or EROFS files that are needed
    /// besides. It is asked after the sessions, so that what somebody hands over from one to the other is in either.
    pub fn prune<E: From<StoreError>>(
        &self,
        options: &PruneOptions,
        in_use: impl FnOnce() -> Result<BTreeSet<Digest>, E>,
    ) -> Result<Pruned, E> {
        let store = self.without_session();
        let _gate = store.close_gate()?;
        let mut roots = store.noted()?;
        roots.extend(in_use()?);
        roots.extend(store.tags()?.into_iter().map(|entry| entry.digest));
        Ok(store.prune_but(roots, options)?)
    }

    fn prune_but(
        &self,
        roots: BTreeSet<Digest>,
        options: &PruneOptions,
    ) -> Result<Pruned, StoreError> {
        let store = self;
        let mut kept = HashSet::new();
        let mut pruned = Pruned::default();
        for digest in roots {
            for item in Item::all(digest) {
                pruned.needed += store.keep(item, &mut kept).1;
            }
        }
        let now = SystemTime::now();
        let items = store.items()?;
        let mut unneeded: Vec<_> = items
            .iter()
            .filter(|(item, _)| !kept.contains(*item))
            .collect();
        unneeded.sort_by_key(|(item, used)| (std::cmp::Reverse(**used), **item));
        for (item, used) in unneeded {
            let is_young = options.older_than.is_some_and(|limit| {
                now.duration_since(*used)
                    .map_or(true, |unused| unused < limit)
            });
            let keeps = match options.keep_storage {
                Some(_) => is_young || options.older_than.is_none(),
                None => is_young,
            };
            if !keeps || kept.contains(item) {
                continue;
            }
            let (added, size) = store.keep(*item, &mut kept);
            if pruned.cache + size <= options.keep_storage.unwrap_or(u64::MAX) {
                pruned.cache += size;
            } else {
                for item in added {
                    kept.remove(&item);
                }
            }
        }
        let mut doomed: Vec<Item> = items.into_keys().collect();
        doomed.retain(|item| !kept.contains(item));
        for item in &doomed {
            if let Item::Image(digest) = item {
                pruned.images.push(*digest);
            }
            for path in store.files_of(*item) {
                if let Ok(meta) = fs::symlink_metadata(&path) {
                    pruned.files += 1;
                    pruned.freed += meta.blocks() * 512;
                }
            }
        }
        if !options.dry_run {
            store.remove(&doomed)?;
        }
        Ok(pruned)
    }

    /// Adds an item, and what it is made of, to `kept`; answers what is new there, and what that takes on the disk.
    fn keep(&self, item: Item, kept: &mut HashSet<Item>) -> (Vec<Item>, u64) {
        let mut added = Vec::new();
        let mut open = vec![item];
        let mut size = 0;
        while let Some(item) = open.pop() {
            if !kept.insert(item) {
                continue;
            }
            added.push(item);
            for path in self.files_of(item) {
                size += fs::symlink_metadata(&path).map_or(0, |meta| meta.blocks() * 512);
            }
            open.extend(self.parts_of(item));
        }
        (added, size)
    }

    /// What an item refers to. What cannot be read refers to nothing: nobody can use it.
    fn parts_of(&self, item: Item) -> Vec<Item> {
        match item {
            Item::Record(key) => {
                let record = self.cache_get(&key).unwrap_or_default();
                digests_in(&record)
                    .into_iter()
                    .flat_map(Item::all)
                    .collect()
            }
            Item::Image(digest) => {
                if !self.image_record_path(&digest).is_file() {
                    return Vec::new();
                }
                let referrers = self.referrers(&digest).unwrap_or_default();
                let referrers = referrers.into_iter().map(|referrer| referrer.digest);
                let manifests = referrers.chain([digest]);
                manifests
                    .flat_map(|manifest| self.parts_of_manifest(&manifest))
                    .collect()
            }
            Item::Layer(diff_id) => {
                let erofs = self.erofs_of(&diff_id);
                erofs.into_iter().map(Item::Erofs).collect()
            }
            Item::Erofs(erofs) => {
                let donors =
                    File::open(self.erofs_path(&erofs)).and_then(|file| erofs::donors(&file));
                donors
                    .unwrap_or_default()
                    .into_iter()
                    .map(Item::Erofs)
                    .collect()
            }
            Item::Blob(digest) => {
                let donors = self.donors(&digest);
                donors
                    .into_iter()
                    .map(|donor| Item::Blob(donor.blob))
                    .collect()
            }
        }
    }

    fn parts_of_manifest(&self, digest: &Digest) -> Vec<Item> {
        let mut parts = vec![Item::Blob(*digest)];
        let bytes = self.read_blob(digest, DOCUMENT_MAX).unwrap_or_default();
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else {
            return parts;
        };
        let config = manifest.config.digest;
        parts.push(Item::Blob(config));
        parts.extend(manifest.layers.iter().map(|layer| Item::Blob(layer.digest)));
        let bytes = self.read_blob(&config, DOCUMENT_MAX).unwrap_or_default();
        if let Ok(config) = serde_json::from_slice::<ImageConfig>(&bytes) {
            parts.extend(config.rootfs.diff_ids.into_iter().map(Item::Layer));
        }
        parts
    }

    fn files_of(&self, item: Item) -> Vec<PathBuf> {
        match item {
            Item::Record(key) => vec![self.cache_path(&key)],
            Item::Image(digest) => {
                let mut files = vec![self.image_record_path(&digest)];
                let folder = fs::read_dir(self.referrers_of(&digest));
                let entries = folder.into_iter().flatten().flatten();
                files.extend(entries.map(|entry| entry.path()));
                files
            }
            Item::Layer(diff_id) => vec![self.record_path(&diff_id)],
            Item::Erofs(erofs) => vec![
                self.extents_path(&erofs),
                self.listing_path(&erofs),
                self.erofs_path(&erofs),
            ],
            Item::Blob(digest) => vec![
                self.frames_path(&digest),
                self.sparse_path(&digest),
                self.blob_path(&digest),
            ],
        }
    }

    /// All there is, and when it was last used.
    fn items(&self) -> Result<BTreeMap<Item, SystemTime>, StoreError> {
        type Kind = fn(Digest) -> Item;
        let folders: [(&str, &str, Kind); 10] = [
            ("cache", "", Item::Record),
            ("images", ".json", Item::Image),
            ("referrers", "", Item::Image),
            ("erofs", ".json", Item::Layer),
            ("erofs", ".erofs", Item::Erofs),
            ("erofs", ".extents", Item::Erofs),
            ("erofs", ".list", Item::Erofs),
            ("frames", "", Item::Blob),
            ("blobs/sparse", "", Item::Blob),
            ("blobs/sha256", "", Item::Blob),
        ];
        let mut items: BTreeMap<Item, SystemTime> = BTreeMap::new();
        for (folder, suffix, kind) in folders {
            let folder = self.dir.join(folder);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("list", &folder)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(io_error("list", &folder))?;
                let name = entry.file_name();
                let hex = name.to_str().and_then(|name| name.strip_suffix(suffix));
                let Some(digest) = hex.and_then(|hex| Digest::from_hex(hex).ok()) else {
                    continue;
                };
                let used = entry.metadata().and_then(|meta| meta.modified());
                let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
                let last = items.entry(kind(digest)).or_insert(used);
                *last = used.max(*last);
            }
        }
        Ok(items)
    }

    fn remove(&self, doomed: &[Item]) -> Result<(), StoreError> {
        let is_record = |item: &&Item| matches!(item, Item::Record(_) | Item::Image(_));
        let is_layer = |item: &&Item| matches!(item, Item::Layer(_));
        let (records, rest): (Vec<&Item>, Vec<&Item>) = doomed.iter().partition(is_record);
        let (layers, files): (Vec<&Item>, Vec<&Item>) = rest.into_iter().partition(is_layer);
        let all = [
            (records, &["cache", "images"][..]),
            (layers, &["erofs"]),
            (files, &[]),
        ];
        for (items, folders) in all {
            for item in items {
                for path in self.files_of(*item) {
                    remove_file(&path)?;
                }
                if let Item::Image(digest) = item {
                    // Not empty where something was said about the image just now.
                    let _ = fs::remove_dir(self.referrers_of(digest));
                }
            }
            for folder in folders {
                super::temp::sync_parent(&self.dir.join(folder).join("any"))?;
            }
        }
        Ok(())
    }
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Every digest that a text has in it: what some record refers to, whatever its form.
pub fn digests_in(text: &[u8]) -> BTreeSet<Digest> {
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.split(|byte| !is_hex(byte))
        .filter_map(|word| Digest::from_hex(std::str::from_utf8(word).ok()?).ok())
        .collect()
}
