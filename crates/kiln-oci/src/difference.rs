//! A layer as the difference from another that is much like it: their EROFS files, one over the other in an overlay, show
//! what the layer's own would.
//!
//! That works where the layer has every path that the other has: an overlay could hide one only together with what other
//! layers, further down, have there. For the same reason a path must not become a directory or stop being one, nor begin
//! or cease to hide what is below it.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use sha2::{Digest as _, Sha256};

use crate::erofs::Pieces;
use crate::layer::{Entry, Kind, LayerError, Tree, parent_of};

/// As many prints stand for a whole listing when it is looked for.
const SKETCH: usize = 16;
/// Of SHA-256, which is enough to tell entries apart.
const PRINT: usize = 20;
/// A layer that takes less is written whole.
const COST_MIN: u64 = 64 << 10;
/// A difference is worth it up to this part of the whole, one of so many.
const PART: u64 = 4;

/// A digest of all that an entry is, its content included.
pub(crate) type Print = [u8; PRINT];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Dir,
    Opaque,
    Other,
}

/// The entries of a layer, for others to be compared with it.
pub(crate) struct Listing {
    entries: BTreeMap<Vec<u8>, (Class, Print)>,
}

impl Listing {
    /// `tree` must have settled hard links.
    pub(crate) fn of(tree: &Tree, pieces: &Pieces) -> Self {
        let mut names: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for (key, entry) in tree.keys() {
            if let Kind::Hardlink { target } = &entry.kind {
                names
                    .entry(target.as_os_str().as_bytes())
                    .or_default()
                    .push(key);
            }
        }
        let mut entries = BTreeMap::new();
        for (key, entry) in tree.keys() {
            // Names of one file are the same or another file all together.
            let holder = match &entry.kind {
                Kind::Hardlink { target } => target.as_os_str().as_bytes(),
                _ => key,
            };
            let Some(entry) = tree.get_key(holder) else {
                continue;
            };
            let links = names.get(holder).map_or(&[][..], Vec::as_slice);
            let class = match entry.kind {
                Kind::Dir { opaque: true } => Class::Opaque,
                Kind::Dir { opaque: false } => Class::Dir,
                _ => Class::Other,
            };
            let print = print(holder, entry, links, pieces);
            entries.insert(key.to_vec(), (class, print));
        }
        Self { entries }
    }

    /// The smallest prints: layers that have much in common have many of them in common.
    pub(crate) fn sketch(&self) -> Vec<Print> {
        let mut prints: Vec<Print> = self.entries.values().map(|(_, print)| *print).collect();
        prints.sort_unstable();
        prints.dedup();
        prints.truncate(SKETCH);
        prints
    }

    pub(crate) fn prints(&self) -> HashSet<Print> {
        self.entries.values().map(|(_, print)| *print).collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let sketch = self.sketch();
        out.push(sketch.len() as u8);
        out.extend(sketch.concat());
        let mut before: &[u8] = &[];
        for (key, (class, print)) in &self.entries {
            let same = before.iter().zip(key).take(255).take_while(|(a, b)| a == b);
            let same = same.count();
            out.push(same as u8);
            out.extend_from_slice(&((key.len() - same) as u16).to_le_bytes());
            out.extend_from_slice(&key[same..]);
            out.push(*class as u8);
            out.extend_from_slice(print);
            before = key;
        }
        out
    }

    /// The sketch at the beginning of an encoded listing.
    pub(crate) fn read_sketch(bytes: &[u8]) -> Option<Vec<Print>> {
        let (count, rest) = bytes.split_first()?;
        let prints = rest.get(..usize::from(*count) * PRINT)?;
        let prints = prints.chunks_exact(PRINT);
        prints.map(|print| print.try_into().ok()).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first()?;
        let mut rest = rest.get(usize::from(*count) * PRINT..)?;
        let mut entries = BTreeMap::new();
        let mut key: Vec<u8> = Vec::new();
        while !rest.is_empty() {
            let (head, after) = rest.split_first_chunk::<3>()?;
            let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
            let (name, after) = after.split_at_checked(length)?;
            if usize::from(head[0]) > key.len() {
                return None;
            }
            key.truncate(head[0].into());
            key.extend_from_slice(name);
            let (class, after) = after.split_first()?;
            let class = match class {
                0 => Class::Dir,
                1 => Class::Opaque,
                _ => Class::Other,
            };
            let (print, after) = after.split_first_chunk::<PRINT>()?;
            entries.insert(key.clone(), (class, *print));
            rest = after;
        }
        Some(Self { entries })
    }

    /// What to put over the layer `base` to have `tree`, of which this is the listing. None where that cannot be, or is
    /// not worth it.
    pub(crate) fn difference(&self, tree: &Tree, base: &Self) -> Result<Option<Tree>, LayerError> {
        for (key, (class, _)) in &base.entries {
            if self.entries.get(key).is_none_or(|(now, _)| now != class) {
                return Ok(None);
            }
        }
        let mut changed: HashSet<&[u8]> = HashSet::new();
        for (key, listed) in &self.entries {
            if base.entries.get(key) != Some(listed) {
                let mut key = key.as_slice();
                while changed.insert(key)
                    && let Some(parent) = parent_of(key)
                {
                    key = parent;
                }
            }
        }
        let entries = || tree.keys().filter(|(key, _)| changed.contains(key));
        let cost: u64 = entries().map(|(key, entry)| cost_of(key, entry)).sum();
        if cost * PART > cost_of_tree(tree) {
            return Ok(None);
        }
        let mut difference = Tree::new();
        for (key, entry) in entries() {
            let mut entry = entry.clone();
            if let Kind::Dir { opaque } = &mut entry.kind
                && base.entries.contains_key(key)
            {
                // The other's says it; saying it here would hide the other's.
                *opaque = false;
            }
            difference.insert_key(key.to_vec(), entry)?;
        }
        Ok(Some(difference))
    }
}

/// Whether a layer is large enough for others to be the difference from it.
pub(crate) fn is_worth_it(tree: &Tree) -> bool {
    cost_of_tree(tree) >= COST_MIN
}

fn cost_of_tree(tree: &Tree) -> u64 {
    tree.keys().map(|(key, entry)| cost_of(key, entry)).sum()
}

/// What an entry takes in every EROFS file that it is in: the blocks of large files are shared in another way.
fn cost_of(key: &[u8], entry: &Entry) -> u64 {
    let content = match &entry.kind {
        Kind::File { size, .. } if !Pieces::are_shared(*size) => *size,
        Kind::Symlink { target } => target.len() as u64,
        _ => 0,
    };
    let name = key.len() - parent_of(key).map_or(0, <[u8]>::len);
    80 + name as u64 + content
}

fn print(key: &[u8], entry: &Entry, links: &[&[u8]], pieces: &Pieces) -> Print {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let number = |a: u32, b: u32| (u64::from(a) << 32 | u64::from(b)).to_le_bytes();
    match &entry.kind {
        Kind::Dir { .. } => add(b"dir"),
        Kind::File { size, .. } => {
            add(b"file");
            add(&size.to_le_bytes());
            for piece in pieces.digests(key) {
                add(piece.as_bytes());
            }
        }
        Kind::Symlink { target } => {
            add(b"symlink");
            add(target);
        }
        Kind::CharDev { major, minor } => {
            add(b"char");
            add(&number(*major, *minor));
        }
        Kind::BlockDev { major, minor } => {
            add(b"block");
            add(&number(*major, *minor));
        }
        Kind::Fifo => add(b"fifo"),
        Kind::Hardlink { .. } => add(b"link"),
        Kind::Whiteout => add(b"whiteout"),
    }
    add(&entry.mode.to_le_bytes());
    add(&number(entry.uid, entry.gid));
    add(&entry.mtime.to_le_bytes());
    for (name, value) in &entry.xattrs {
        add(name);
        add(value);
    }
    add(b"links");
    for link in links {
        add(link);
    }
    if !links.is_empty() {
        add(key);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut print = [0; PRINT];
    print.copy_from_slice(&digest[..PRINT]);
    print
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Tree {
        let mut tree = Tree::new();
        for number in 0..200 {
            let entry = Entry::bytes(vec![number as u8; 2000], 0o644);
            tree.insert(format!("d{}/{number}", number % 3), entry)
                .unwrap();
        }
        let opaque = Entry::new(Kind::Dir { opaque: true }, 0o755);
        tree.insert("opaque", opaque).unwrap();
        tree.insert("opaque/in", Entry::bytes(*b"x", 0o644))
            .unwrap();
        tree.insert("gone", Entry::new(Kind::Whiteout, 0)).unwrap();
        let target = "d0/0".into();
        tree.insert("link", Entry::new(Kind::Hardlink { target }, 0))
            .unwrap();
        tree.settle_links().unwrap();
        tree
    }

    fn listing(tree: &Tree) -> Listing {
        Listing::of(tree, &Pieces::of(tree).unwrap())
    }

    fn difference(change: impl FnOnce(&mut Tree)) -> Option<Vec<String>> {
        let mut tree = base();
        change(&mut tree);
        tree.settle_links().unwrap();
        let before = Listing::decode(&listing(&base()).encode()).unwrap();
        let tree = listing(&tree).difference(&tree, &before).unwrap()?;
        let paths = tree.iter().map(|(path, _)| path.display().to_string());
        Some(paths.skip(1).collect())
    }

    #[test]
    fn a_difference_is_what_changed_and_the_folders_around_it() {
        let file = |text: &[u8]| Entry::bytes(text.to_vec(), 0o644);
        let changed = difference(|tree| tree.insert("d1/4", file(b"new")).unwrap());
        assert_eq!(changed.unwrap(), ["d1", "d1/4"]);
        let mode = difference(|tree| tree.get_mut("d2/5").unwrap().mode = 0o600);
        assert_eq!(mode.unwrap(), ["d2", "d2/5"]);
        let added = difference(|tree| tree.insert("new/deep/er", file(b"")).unwrap());
        assert_eq!(added.unwrap(), ["new", "new/deep", "new/deep/er"]);
        let shown = difference(|tree| tree.insert("gone", file(b"back")).unwrap());
        assert_eq!(shown.unwrap(), ["gone"]);
        let opaque = difference(|tree| tree.insert("opaque/in", file(b"other")).unwrap());
        assert_eq!(opaque.unwrap(), ["opaque", "opaque/in"]);
        // One name of a file brings all of them.
        let linked = difference(|tree| tree.insert("d0/0", file(b"other")).unwrap());
        assert_eq!(linked.unwrap(), ["d0", "d0/0", "link"]);
        assert_eq!(difference(|_| {}).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_an_overlay_cannot_say_is_no_difference() {
        let file = || Entry::bytes(*b"x", 0o644);
        assert!(difference(|tree| assert!(tree.remove("d1/4"))).is_none());
        assert!(difference(|tree| tree.insert("d1", file()).unwrap()).is_none());
        assert!(difference(|tree| tree.insert("gone", Entry::dir(0o755)).unwrap()).is_none());
        let hide = |tree: &mut Tree| {
            tree.get_mut("d1").unwrap().kind = Kind::Dir { opaque: true };
        };
        assert!(difference(hide).is_none());
        let most = |tree: &mut Tree| {
            for number in 0..100 {
                tree.get_mut(format!("d{}/{number}", number % 3))
                    .unwrap()
                    .mode = 0o600;
            }
        };
        assert!(difference(most).is_none());
    }
}
