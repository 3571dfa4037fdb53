//! Git's index (gitformat-index(5)), read only: which files are as they were when Git last read them, so that nobody has to.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_bake::git_objects::Oid;

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
    entries: HashMap<Vec<u8>, Noted>,
    written: (u32, u32),
}

impl Index {
    /// `git`: the folder with HEAD.
    pub(super) fn open(git: &Path) -> Self {
        let path = git.join("index");
        let read = || Some((path.metadata().ok()?, std::fs::read(&path).ok()?));
        read()
            .and_then(|(there, bytes)| {
                Some(Self {
                    entries: parse(&bytes)?,
                    written: time(there.mtime(), there.mtime_nsec()),
                })
            })
            .unwrap_or_default()
    }

    /// Whether the file, whose path in the work tree is `path`, surely has the contents `oid`.
    pub(super) fn holds(&self, path: &[u8], there: &Metadata, oid: Oid) -> bool {
        let found = Noted {
            changed: time(there.ctime(), there.ctime_nsec()),
            modified: time(there.mtime(), there.mtime_nsec()),
            // It has the low 32 bits of each.
            inode: there.ino() as u32,
            size: there.size() as u32,
            oid,
        };
        // A file as young as the index may have changed within the same instant.
        found.modified < self.written && self.entries.get(path) == Some(&found)
    }
}

fn time(seconds: i64, nanoseconds: i64) -> (u32, u32) {
    (seconds as u32, nanoseconds as u32)
}

fn parse(bytes: &[u8]) -> Option<HashMap<Vec<u8>, Noted>> {
    const FIXED: usize = 62;
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let version = word(4)?;
    if bytes.get(..4)? != b"DIRC" || !(2..=4).contains(&version) {
        return None;
    }
    let mut entries = HashMap::new();
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
            entries.insert(name.clone(), noted);
        }
    }
    Some(entries)
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
