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
use serde::de::DeserializeOwned;

use super::error::{StoreError, io_error};
use super::mounts::{IdleMount, PrunedMount};
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
    /// The caches of steps among it.
    pub mounts: Vec<PrunedMount>,
    pub files: u64,
    /// On the disk, in bytes, as all of these.
    pub freed: u64,
    /// What is needed.
    pub needed: u64,
    /// What is kept although nothing needs it.
    pub cache: u64,
}

/// What is kept for the next bake only, or not.
enum Unneeded {
    Item(Item),
    Mount(IdleMount),
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

/// Why something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Asked,
    /// The next bake may want it.
    Cache,
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
        let gate = store.close_gate()?;
        let mut roots = store.noted()?;
        roots.extend(in_use()?);
        roots.extend(store.tags()?.into_iter().map(|entry| entry.digest));
        let (pruned, mounts) = store.prune_but(roots, options)?;
        drop(gate);
        if !options.dry_run {
            // Nobody refers to them, and they may be large: bakes go on meanwhile.
            store.sweep_mounts()?;
            for mount in mounts {
                mount.remove()?;
            }
        }
        Ok(pruned)
    }

    fn prune_but(
        &self,
        roots: BTreeSet<Digest>,
        options: &PruneOptions,
    ) -> Result<(Pruned, Vec<IdleMount>), StoreError> {
        let store = self;
        let mut kept = HashSet::new();
        let mut pruned = Pruned::default();
        for digest in roots {
            for item in Item::all(digest) {
                pruned.needed += store.keep(item, Need::Asked, &mut kept)?.1;
            }
        }
        let now = SystemTime::now();
        let items = store.items()?;
        let (mounts, busy) = store.idle_mounts()?;
        pruned.needed += busy;
        let mut doomed_mounts = Vec::new();
        let mut unneeded: Vec<(SystemTime, Unneeded)> = items
            .iter()
            .filter(|(item, _)| !kept.contains(*item))
            .map(|(item, used)| (*used, Unneeded::Item(*item)))
            .chain(
                mounts
                    .into_iter()
                    .map(|mount| (mount.used, Unneeded::Mount(mount))),
            )
            .collect();
        // By place among those of one time, which is the same each time.
        unneeded.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        for (used, what) in unneeded {
            let is_young = options.older_than.is_some_and(|limit| {
                now.duration_since(used)
                    .map_or(true, |unused| unused < limit)
            });
            let keeps = match options.keep_storage {
                Some(_) => is_young || options.older_than.is_none(),
                None => is_young,
            };
            let fits = |size| pruned.cache + size <= options.keep_storage.unwrap_or(u64::MAX);
            match what {
                Unneeded::Item(item) => {
                    if !keeps || kept.contains(&item) {
                        continue;
                    }
                    let (added, size) = store.keep(item, Need::Cache, &mut kept)?;
                    if fits(size) {
                        pruned.cache += size;
                    } else {
                        for item in added {
                            kept.remove(&item);
                        }
                    }
                }
                Unneeded::Mount(mount) if keeps && fits(mount.size) => pruned.cache += mount.size,
                Unneeded::Mount(mount) => {
                    pruned.freed += mount.size;
                    pruned.mounts.push(PrunedMount {
                        id: mount.id.clone(),
                        size: mount.size,
                    });
                    doomed_mounts.push(mount);
                }
            }
        }
        pruned.mounts.sort();
        let mut doomed: Vec<Item> = items.into_keys().collect();
        doomed.retain(|item| !kept.contains(item));
        for item in &doomed {
            if let Item::Image(digest) = item {
                pruned.images.push(*digest);
            }
            for path in store.files_of(*item)? {
                if let Some(size) = occupied(&path)? {
                    pruned.files += 1;
                    pruned.freed += size;
                }
            }
        }
        if !options.dry_run {
            store.remove(&doomed)?;
        }
        Ok((pruned, doomed_mounts))
    }

    /// Adds an item, and what it is made of, to `kept`; answers what is new there, and what that takes on the disk.
    fn keep(
        &self,
        item: Item,
        need: Need,
        kept: &mut HashSet<Item>,
    ) -> Result<(Vec<Item>, u64), StoreError> {
        let mut added = Vec::new();
        let mut open = vec![item];
        let mut size = 0;
        while let Some(item) = open.pop() {
            if !kept.insert(item) {
                continue;
            }
            added.push(item);
            for path in self.files_of(item)? {
                size += occupied(&path)?.unwrap_or_default();
            }
            match self.parts_of(item) {
                Ok(parts) => open.extend(parts),
                // Nobody can use it, and nothing of it.
                Err(error) if need == Need::Cache && error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok((added, size))
    }

    /// What an item refers to. What is not there refers to nothing.
    ///
    /// # Errors
    ///
    /// It is there and can't be read, or it is damaged: what it refers to is then unknown, which is not the same as nothing.
    fn parts_of(&self, item: Item) -> Result<Vec<Item>, StoreError> {
        let parts = match item {
            // What is so large is made of bytes, not of digests.
            Item::Record(key) if occupied(&self.cache_path(&key))? > Some(DOCUMENT_MAX) => {
                Vec::new()
            }
            Item::Record(key) => {
                // One that is damaged counts as absent, for a bake too.
                let record = self.cache_read(&key)?.unwrap_or_default();
                let digests = digests_in(&record).into_iter();
                digests.flat_map(Item::all).collect()
            }
            Item::Image(digest) => {
                if occupied(&self.image_record_path(&digest))?.is_none() {
                    return Ok(Vec::new());
                }
                let mut parts = Vec::new();
                for referrer in self.referrers(&digest)? {
                    self.parts_of_manifest(&referrer.digest, &mut parts)?;
                }
                if let Some(manifest) = self.parts_of_manifest(&digest, &mut parts)? {
                    let config = manifest.config.digest;
                    if let Some(config) = self.parsed::<ImageConfig>(&config, "configuration")? {
                        parts.extend(config.rootfs.diff_ids.into_iter().map(Item::Layer));
                    }
                }
                parts
            }
            Item::Layer(diff_id) => {
                let erofs = self.erofs_of(&diff_id)?.into_iter();
                erofs.map(Item::Erofs).collect()
            }
            Item::Erofs(erofs) => {
                let path = self.erofs_path(&erofs);
                let donors = match File::open(&path).and_then(|file| erofs::donors(&file)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                    donors => donors.map_err(io_error("read", &path))?,
                };
                donors.into_iter().map(Item::Erofs).collect()
            }
            Item::Blob(digest) => {
                let donors = self.donors(&digest)?.into_iter();
                donors.map(|donor| Item::Blob(donor.blob)).collect()
            }
        };
        Ok(parts)
    }

    fn parts_of_manifest(
        &self,
        digest: &Digest,
        parts: &mut Vec<Item>,
    ) -> Result<Option<Manifest>, StoreError> {
        parts.push(Item::Blob(*digest));
        let manifest = self.parsed::<Manifest>(digest, "manifest")?;
        if let Some(manifest) = &manifest {
            parts.push(Item::Blob(manifest.config.digest));
            parts.extend(manifest.layers.iter().map(|layer| Item::Blob(layer.digest)));
        }
        Ok(manifest)
    }

    fn parsed<T: DeserializeOwned>(
        &self,
        digest: &Digest,
        what: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let bytes = match self.read_blob(digest, DOCUMENT_MAX) {
            Err(StoreError::BlobMissing { .. }) => return Ok(None),
            bytes => bytes?,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| StoreError::ImageInvalid {
                digest: *digest,
                what,
                source,
            })
    }

    fn files_of(&self, item: Item) -> Result<Vec<PathBuf>, StoreError> {
        let files = match item {
            Item::Record(key) => vec![self.cache_path(&key)],
            Item::Image(digest) => {
                let mut files = vec![self.image_record_path(&digest)];
                let folder = self.referrers_of(&digest);
                match fs::read_dir(&folder) {
                    Ok(entries) => {
                        for entry in entries {
                            files.push(entry.map_err(io_error("list", &folder))?.path());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("list", &folder)(error)),
                }
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
        };
        Ok(files)
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
                let used = match entry.metadata().and_then(|meta| meta.modified()) {
                    // A bake ended, and took its own away.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    used => used.map_err(io_error("look at", &entry.path()))?,
                };
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
                for path in self.files_of(*item)? {
                    remove_file(&path)?;
                }
                if let Item::Image(digest) = item {
                    #[expect(
                        clippy::let_underscore_must_use,
                        reason = "not empty where something was said about the image just now"
                    )]
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

/// What a file takes on the disk, in bytes; none where it is not there.
fn occupied(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.blocks() * 512)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("look at", path)(error)),
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
