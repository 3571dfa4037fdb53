//! What is known of a layer before it is whole. While scripts run, which hardly ever use more than one processor, what is unpacked is
//! read, searched for secrets and compressed; what has not changed since need not be read for that again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_model::Digest;
use kiln_oci::{Content, ContentReader, Kind, KnownFile, Prepared, Stamp, Store, Tree};
use rustix::fs::AtFlags;

use crate::leaks;

/// The kernel's clock of files goes on in steps of 10 ms at most. What was changed within the last one may be changed again and keep its
/// stat data.
const TICK_NS: i128 = 20_000_000;

#[derive(Default)]
pub(crate) struct LayerPrefetch {
    pub(crate) prepared: Prepared,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By their paths in the layer.
    files: HashMap<PathBuf, Arc<KnownFile>>,
    /// Contents with nothing secret in them.
    clean: HashSet<Digest>,
}

impl LayerPrefetch {
    /// Looks at what a layer that is still in the making has, until `stop`. What changes meanwhile is looked at in vain.
    pub(crate) fn read_ahead(&self, store: &Store, tree: &mut Tree, stop: &dyn Fn() -> bool) {
        let mut buffer = vec![0; KnownFile::PIECE];
        self.apply(tree);
        for (path, entry) in tree.iter() {
            if stop() {
                return;
            }
            let Kind::File { content, size } = &entry.kind else {
                continue;
            };
            // One that a script took away is not in the layer.
            if let (Content::Under { .. }, Ok(Some((file, is_clean)))) =
                (content, read(content, *size, &mut buffer))
            {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if is_clean {
                    known.clean.insert(file.content());
                }
                known.files.insert(path.to_owned(), Arc::new(file));
            }
        }
        self.apply(tree);
        store.prepare(tree, &self.prepared, stop);
    }

    /// Says of the files of `tree` what is known of them, where they are still the same.
    pub(crate) fn apply(&self, tree: &mut Tree) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, file) in &known.files {
            let Some(Kind::File { content, size }) =
                tree.get_mut(path).map(|entry| &mut entry.kind)
            else {
                continue;
            };
            let Content::Under { dir, path } = content else {
                continue;
            };
            let there = rustix::fs::statat(&*dir, path.as_path(), AtFlags::SYMLINK_NOFOLLOW);
            if there.is_ok_and(|there| Stamp::of(&there) == file.stamp)
                && *size == file.stamp.size()
            {
                *content = Content::Known {
                    dir: dir.clone(),
                    path: std::mem::take(path),
                    file: file.clone(),
                };
            }
        }
    }

    /// Contents in which was searched, and nothing found.
    pub(crate) fn clean(&self) -> HashSet<Digest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clean.clone()
    }
}

/// What a file holds, and that it has nothing secret; `None` where that may be otherwise already.
fn read(content: &Content, size: u64, buffer: &mut [u8]) -> io::Result<Option<(KnownFile, bool)>> {
    let reader = content.open()?;
    let ContentReader::File { file: open } = &reader else {
        return Ok(None);
    };
    let stamp = Stamp::of_file(open)?;
    let now = i128::try_from(kiln_fs::clock::wall().as_nanos()).unwrap_or(i128::MAX);
    if stamp.size() != size || stamp.changed_ns() + TICK_NS > now {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let count = reader.read_within(size, buffer, at)?;
        if count == 0 {
            return Ok(None);
        }
        pieces.push(Digest::of(&buffer[..count]));
        at += count as u64;
    }
    let is_clean = leaks::is_clean(content, size, buffer)?;
    let known = KnownFile {
        stamp,
        pieces: pieces.into(),
    };
    Ok((Stamp::of_file(open)? == stamp).then_some((known, is_clean)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_was_looked_at_is_known_as_long_as_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let upper = folder.path().join("upper");
        fs::create_dir_all(upper.join("usr")).unwrap();
        let long = "x".repeat(KnownFile::PIECE + 5);
        let key = format!("AKIA{}\n", "Z7Q2M5X6K3W4R2T3");
        for (name, text) in [
            ("same", "text"),
            ("long", &*long),
            ("edited", "before"),
            ("gone", "text"),
            ("secret", &*key),
        ] {
            fs::write(upper.join("usr").join(name), text).unwrap();
        }
        let tick = Duration::from_nanos(u64::try_from(TICK_NS).unwrap());
        let late = fs::metadata(upper.join("usr/secret")).unwrap().modified();
        while SystemTime::now() <= late.as_ref().unwrap().checked_add(2 * tick).unwrap() {
            std::thread::yield_now();
        }
        let prefetch = LayerPrefetch::default();
        let mut tree = Tree::from_upper(&upper).unwrap();
        prefetch.read_ahead(&store, &mut tree, &|| false);
        fs::write(upper.join("usr/edited"), "after!").unwrap();
        fs::remove_file(upper.join("usr/gone")).unwrap();
        fs::write(upper.join("usr/new"), "text").unwrap();
        let mut tree = Tree::from_upper(&upper).unwrap();
        prefetch.apply(&mut tree);
        let known = |name: &str| match &tree.get(name).unwrap().kind {
            Kind::File {
                content: Content::Known { file, .. },
                ..
            } => Some(file.clone()),
            _ => None,
        };
        assert_eq!(*known("usr/same").unwrap().pieces, [Digest::of(b"text")]);
        assert_eq!(known("usr/long").unwrap().pieces.len(), 2);
        assert!(known("usr/edited").is_none() && known("usr/new").is_none());
        let clean = prefetch.clean();
        assert!(clean.contains(&known("usr/long").unwrap().content()));
        assert!(!clean.contains(&known("usr/secret").unwrap().content()));
        // And the layer is the same as of who looks at it now.
        let (layer, _) =
            leaks::add_prepared(&store, &tree, &prefetch.prepared, &prefetch.clean()).unwrap();
        let other = Store::open(&folder.path().join("other")).unwrap();
        let (same, _) =
            leaks::add(&other, &Tree::from_upper(&upper).unwrap(), &HashSet::new()).unwrap();
        assert_eq!(layer, same);
        assert_eq!(
            leaks::of_layer(&store, &layer).unwrap(),
            leaks::of_layer(&other, &same).unwrap()
        );
    }
}
