//! Several layers as the one tree that an overlay of them shows.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::PathBuf;

use crate::layer::{Entry, Kind, LayerError, Tree, to_path};

/// A path of the merged tree. Names of one file keep its content each, until the end says which of them are left.
struct Merged {
    entry: Entry,
    /// The layer, and the first name in it.
    file: Option<(usize, Vec<u8>)>,
}

impl Tree {
    /// What the layers, bottom to top, show together: whiteouts and opaque directories are carried out and gone.
    pub fn merge(layers: &[Self]) -> Result<Self, LayerError> {
        let mut merged: BTreeMap<Vec<u8>, Merged> = BTreeMap::new();
        for (number, layer) in layers.iter().enumerate() {
            let layer = layer.settled()?;
            for (key, entry) in layer.keys() {
                let is_dir = matches!(entry.kind, Kind::Dir { .. });
                let hides = !is_dir || matches!(entry.kind, Kind::Dir { opaque: true });
                if hides {
                    remove_below(&mut merged, key);
                }
                if matches!(entry.kind, Kind::Whiteout) {
                    merged.remove(key);
                    continue;
                }
                let (holder, file) = match &entry.kind {
                    Kind::Hardlink { target } => {
                        let first = target.as_os_str().as_encoded_bytes().to_vec();
                        let holder = layer
                            .get_key(&first)
                            .ok_or_else(|| dangling(key, target.clone()))?;
                        (holder, Some((number, first)))
                    }
                    _ => (entry, (!is_dir).then(|| (number, key.to_vec()))),
                };
                let mut entry = holder.clone();
                if let Kind::Dir { opaque } = &mut entry.kind {
                    *opaque = false;
                }
                merged.insert(key.to_vec(), Merged { entry, file });
            }
        }
        let mut tree = Self::new();
        let mut first_names: BTreeMap<(usize, Vec<u8>), Vec<u8>> = BTreeMap::new();
        for (key, Merged { mut entry, file }) in merged {
            if let Some(file) = file {
                match first_names.entry(file) {
                    Slot::Vacant(slot) => drop(slot.insert(key.clone())),
                    Slot::Occupied(first) => {
                        let target = to_path(first.get()).to_path_buf();
                        entry.kind = Kind::Hardlink { target };
                    }
                }
            }
            tree.insert_key(key, entry)?;
        }
        Ok(tree)
    }
}

fn remove_below(merged: &mut BTreeMap<Vec<u8>, Merged>, key: &[u8]) {
    let (mut from, mut to) = (key.to_vec(), key.to_vec());
    if key.is_empty() {
        merged.clear();
        return;
    }
    from.push(b'/');
    to.push(b'/' + 1);
    let below: Vec<_> = merged.range(from..to).map(|(key, _)| key.clone()).collect();
    for key in below {
        merged.remove(&key);
    }
}

fn dangling(key: &[u8], target: PathBuf) -> LayerError {
    LayerError::LinkTarget {
        path: to_path(key).to_path_buf(),
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tree: &Tree, path: &str) -> Option<Vec<u8>> {
        match &tree.get(path)?.kind {
            Kind::File {
                content: crate::Content::Bytes(bytes),
                ..
            } => Some(bytes.to_vec()),
            other => panic!("{path} is {other:?}"),
        }
    }

    fn link(target: &str) -> Entry {
        let target = target.into();
        Entry::new(Kind::Hardlink { target }, 0)
    }

    #[test]
    fn upper_layers_replace_hide_and_delete() {
        let mut lower = Tree::new();
        for path in ["keep", "gone/a/b", "hidden/old", "dir/x", "file"] {
            lower.insert(path, Entry::bytes(*b"lower", 0o644)).unwrap();
        }
        let mut upper = Tree::new();
        upper.insert("gone", Entry::new(Kind::Whiteout, 0)).unwrap();
        upper
            .insert("hidden", Entry::new(Kind::Dir { opaque: true }, 0o700))
            .unwrap();
        upper
            .insert("hidden/new", Entry::bytes(*b"upper", 0o600))
            .unwrap();
        upper.insert("dir", Entry::symlink("keep")).unwrap();
        upper
            .insert("file/now", Entry::bytes(*b"dir", 0o644))
            .unwrap();
        let merged = Tree::merge(&[lower, upper]).unwrap();
        let paths: Vec<_> = merged
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        assert_eq!(
            paths,
            [
                "",
                "dir",
                "file",
                "file/now",
                "hidden",
                "hidden/new",
                "keep"
            ]
        );
        assert_eq!(text(&merged, "keep").unwrap(), b"lower");
        assert!(matches!(
            merged.get("hidden").unwrap(),
            Entry {
                kind: Kind::Dir { opaque: false },
                mode: 0o700,
                ..
            }
        ));
    }

    #[test]
    fn names_of_one_file_stay_one_file_whichever_of_them_is_left() {
        let mut lower = Tree::new();
        lower.insert("a", Entry::bytes(*b"shared", 0o644)).unwrap();
        lower.insert("b", link("a")).unwrap();
        lower.insert("c", link("a")).unwrap();
        let mut upper = Tree::new();
        upper.insert("a", Entry::bytes(*b"own", 0o644)).unwrap();
        let merged = Tree::merge(&[lower, upper]).unwrap();
        assert_eq!(text(&merged, "a").unwrap(), b"own");
        assert_eq!(text(&merged, "b").unwrap(), b"shared");
        assert!(matches!(
            &merged.get("c").unwrap().kind,
            Kind::Hardlink { target } if target.to_str() == Some("b")
        ));
    }
}
