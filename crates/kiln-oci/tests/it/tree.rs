//! What a tree says should be seen once it is mounted.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_oci::{Content, Entry, Kind, Tree};

use crate::mounts::{Seen, SeenKind};

pub(crate) fn bytes_of(content: &Content) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes.to_vec(),
        other => panic!("these tests make trees of bytes, not of {other:?}"),
    }
}

/// As the kernel is to show the EROFS file of `tree`.
pub(crate) fn expected(tree: &Tree) -> BTreeMap<Vec<u8>, Seen> {
    let holder = |path: &Path, entry: &Entry| match &entry.kind {
        Kind::Hardlink { target } => target.clone(),
        _ => path.to_path_buf(),
    };
    let mut names: BTreeMap<_, u64> = BTreeMap::new();
    let mut subdirs: BTreeMap<_, u64> = BTreeMap::new();
    for (path, entry) in tree.iter() {
        *names.entry(holder(path, entry)).or_default() += 1;
        if let (Kind::Dir { .. }, Some(parent)) = (&entry.kind, path.parent()) {
            *subdirs.entry(parent.to_path_buf()).or_default() += 1;
        }
    }
    tree.iter()
        .map(|(path, entry)| {
            let holder = holder(path, entry);
            let entry = tree.get(&holder).unwrap();
            let mut xattrs = entry.xattrs.clone();
            let mut nlink = names[&holder];
            let kind = match &entry.kind {
                Kind::Dir { opaque } => {
                    nlink = 2 + subdirs.get(path).copied().unwrap_or_default();
                    if *opaque {
                        xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
                    }
                    SeenKind::Dir
                }
                Kind::File { content, .. } => SeenKind::File(bytes_of(content)),
                Kind::Symlink { target } => SeenKind::Symlink(target.clone()),
                Kind::CharDev { major, minor } => SeenKind::Char(*major, *minor),
                Kind::BlockDev { major, minor } => SeenKind::Block(*major, *minor),
                Kind::Fifo => SeenKind::Fifo,
                Kind::Whiteout => SeenKind::Char(0, 0),
                Kind::Hardlink { .. } => panic!("a link to a link"),
            };
            let seen = Seen {
                kind,
                mode: entry.mode,
                owner: (entry.uid, entry.gid),
                mtime: entry.mtime,
                nlink,
                xattrs,
            };
            (path.as_os_str().as_bytes().to_vec(), seen)
        })
        .collect()
}

/// Names the first difference, where an `assert_eq` of two maps would print both.
#[track_caller]
pub(crate) fn assert_same(actual: &BTreeMap<Vec<u8>, Seen>, expected: &BTreeMap<Vec<u8>, Seen>) {
    for (path, wanted) in expected {
        let path_text = String::from_utf8_lossy(path);
        match actual.get(path) {
            None => panic!("`{path_text}` is missing"),
            Some(seen) if seen != wanted => {
                let text = |seen: &Seen| format!("{seen:?}").chars().take(600).collect::<String>();
                panic!(
                    "`{path_text}`\n  is     {}\n  wanted {}",
                    text(seen),
                    text(wanted)
                );
            }
            Some(_) => {}
        }
    }
    if let Some(path) = actual.keys().find(|path| !expected.contains_key(*path)) {
        panic!("`{}` should not be there", String::from_utf8_lossy(path));
    }
}
