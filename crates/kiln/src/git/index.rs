//! Git's index (gitformat-index(5)), read only: which files are as they were when Git last read them, so that nobody has to.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_git::object::Oid;
use kiln_oci::Stamp;

/// What Git noted of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Noted {
    changed: (u32, u32),
    modified: (u32, u32),
    inode: u32,
    size: u32,
    oid: Oid,
}

/// Empty where there is none, or one of a kind that is not known: then files are read.
#[derive(Default)]
pub(super) struct Index {
    names: Vec<u8>,
    /// With the place of each name, in the order of the names, as Git has them.
    entries: Vec<(Range<usize>, Noted)>,
    written: (u32, u32),
}

impl Index {
    /// `git`: the folder with HEAD.
    pub(super) fn open(git: &Path) -> Self {
        let path = git.join("index");
        let read = || Some((path.metadata().ok()?, std::fs::read(&path).ok()?));
        read()
            .and_then(|(there, bytes)| {
                let written = time((there.mtime(), there.mtime_nsec()));
                parse(&bytes, written)
            })
            .unwrap_or_default()
    }

    /// Whether the file, whose path in the work tree is `path`, surely has the contents `oid`.
    pub(super) fn holds(&self, path: &[u8], there: &Stamp, oid: Oid) -> bool {
        let found = Noted {
            changed: time(there.changed()),
            modified: time(there.modified()),
            // It has the low 32 bits of each.
            inode: there.inode() as u32,
            size: there.size() as u32,
            oid,
        };
        // A file as young as the index may have changed within the same instant.
        found.modified < self.written && self.noted(path) == Some(&found)
    }

    fn noted(&self, path: &[u8]) -> Option<&Noted> {
        let of = |place: &Range<usize>| &self.names[place.clone()];
        let at = self
            .entries
            .binary_search_by(|(name, _)| of(name).cmp(path));
        at.ok().map(|at| &self.entries[at].1)
    }
}

fn time((seconds, nanoseconds): (i64, i64)) -> (u32, u32) {
    (seconds as u32, nanoseconds as u32)
}

fn parse(bytes: &[u8], written: (u32, u32)) -> Option<Index> {
    const FIXED: usize = 62;
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let version = word(4)?;
    if bytes.get(..4)? != b"DIRC" || !(2..=4).contains(&version) {
        return None;
    }
    let mut index = Index {
        names: Vec::new(),
        entries: Vec::new(),
        written,
    };
    let mut at = 12;
    let mut name: Vec<u8> = Vec::new();
    for _ in 0..word(8)? {
        let noted = Noted {
            changed: (word(at)?, word(at + 4)?),
            modified: (word(at + 8)?, word(at + 12)?),
            inode: word(at + 20)?,
            size: word(at + 36)?,
            oid: Oid(bytes.get(at + 40..at + 60)?.try_into().ok()?),
        };
        let flags = u16::from_be_bytes(bytes.get(at + 60..at + FIXED)?.try_into().ok()?);
        let is_extended = flags & 0x4000 != 0;
        let mut from = at + FIXED + if is_extended { 2 } else { 0 };
        if version == 4 {
            let (drop, used) = offset(bytes.get(from..)?)?;
            from += used;
            name.truncate(name.len().checked_sub(drop)?);
        } else {
            name.clear();
        }
        let rest = bytes.get(from..)?;
        let length = rest.iter().position(|byte| *byte == 0)?;
        name.extend(&rest[..length]);
        let end = from + length + 1;
        at = match version {
            4 => end,
            // Filled up to a multiple of eight from the entry's start.
            _ => at + (end - at).next_multiple_of(8),
        };
        let is_merged = flags & 0x3000 == 0;
        if is_merged {
            let start = index.names.len();
            index.names.extend(&name);
            index.entries.push((start..index.names.len(), noted));
        }
    }
    Some(index)
}

/// As the offsets of deltas in a pack.
fn offset(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        if index > 0 {
            value = value.checked_add(1)?.checked_shl(7)?;
        }
        value |= usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}
