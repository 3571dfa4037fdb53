//! Git's objects, loose and packed (gitformat-pack(5)), read only.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::GitError;

/// A SHA-1 name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Oid(pub(super) [u8; 20]);

impl Oid {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() != 40 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 20];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

/// Commits and trees are small; a larger one is a mistake rather than a tree.
const OBJECT_LIMIT: usize = 64 * 1024 * 1024;
/// Git's own default for the length of a chain of deltas is 50.
const CHAIN_LIMIT: usize = 4096;

pub(super) struct Objects {
    folders: Vec<PathBuf>,
}

impl Objects {
    pub(super) fn open(common: &Path) -> Self {
        let own = common.join("objects");
        let mut folders = vec![own.clone()];
        if let Ok(text) = std::fs::read_to_string(own.join("info/alternates")) {
            folders.extend(
                text.lines()
                    .filter(|line| !line.is_empty())
                    .map(|line| own.join(line)),
            );
        }
        Self { folders }
    }

    pub(super) fn read(&self, oid: Oid) -> Result<(Kind, Vec<u8>), GitError> {
        let name = oid.to_string();
        for folder in &self.folders {
            let path = folder.join(&name[..2]).join(&name[2..]);
            match std::fs::read(&path) {
                Ok(bytes) => return loose(&bytes).ok_or(GitError::Damaged(name)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(GitError::Io { path, source }),
            }
        }
        for folder in &self.folders {
            let Ok(entries) = std::fs::read_dir(folder.join("pack")) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "idx")
                    && let Some(offset) = lookup(&path, oid)?
                {
                    return self.packed(&path.with_extension("pack"), offset, oid);
                }
            }
        }
        Err(GitError::Missing(name))
    }

    fn packed(&self, path: &Path, offset: u64, oid: Oid) -> Result<(Kind, Vec<u8>), GitError> {
        let io = |source| GitError::Io {
            path: path.to_owned(),
            source,
        };
        let damaged = || GitError::Damaged(oid.to_string());
        let file = File::open(path).map_err(io)?;
        let end = file.metadata().map_err(io)?.len();
        let mut deltas = Vec::new();
        let mut at = offset;
        let (kind, mut object) = loop {
            if deltas.len() > CHAIN_LIMIT {
                return Err(damaged());
            }
            let mut head = vec![0; usize::try_from(end.saturating_sub(at)).unwrap_or(0).min(64)];
            file.read_exact_at(&mut head, at).map_err(io)?;
            let (kind, size, mut used) = entry_head(&head).ok_or_else(damaged)?;
            let base = match kind {
                6 => {
                    let (back, length) = offset_delta(&head[used..]).ok_or_else(damaged)?;
                    used += length;
                    Some(Base::At(at.checked_sub(back).ok_or_else(damaged)?))
                }
                7 => {
                    let bytes = head
                        .get(used..used + 20)
                        .and_then(|b| b.try_into().ok())
                        .ok_or_else(damaged)?;
                    used += 20;
                    Some(Base::Named(Oid(bytes)))
                }
                _ => None,
            };
            if size > OBJECT_LIMIT {
                return Err(damaged());
            }
            let from = at + used as u64;
            let bytes = inflate_at(&file, from, end, size)
                .map_err(io)?
                .ok_or_else(damaged)?;
            match base {
                None => {
                    let kind = match kind {
                        1 => Kind::Commit,
                        2 => Kind::Tree,
                        3 => Kind::Blob,
                        4 => Kind::Tag,
                        _ => return Err(damaged()),
                    };
                    break (kind, bytes);
                }
                Some(Base::At(before)) => {
                    deltas.push(bytes);
                    at = before;
                }
                Some(Base::Named(base)) => {
                    deltas.push(bytes);
                    break self.read(base)?;
                }
            }
        };
        for delta in deltas.iter().rev() {
            object = apply(&object, delta).ok_or_else(damaged)?;
        }
        Ok((kind, object))
    }
}

enum Base {
    At(u64),
    Named(Oid),
}

fn loose(bytes: &[u8]) -> Option<(Kind, Vec<u8>)> {
    let mut object =
        miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(bytes, OBJECT_LIMIT).ok()?;
    let nul = object.iter().position(|byte| *byte == 0)?;
    let kind = match object[..nul].split(|byte| *byte == b' ').next()? {
        b"commit" => Kind::Commit,
        b"tree" => Kind::Tree,
        b"blob" => Kind::Blob,
        b"tag" => Kind::Tag,
        _ => return None,
    };
    object.drain(..=nul);
    Some((kind, object))
}

/// Type, unpacked size, and how many bytes said so.
fn entry_head(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let first = *bytes.first()?;
    let mut size = usize::from(first & 15);
    let (mut shift, mut used, mut more) = (4, 1, first & 128 != 0);
    while more {
        let byte = *bytes.get(used)?;
        size |= usize::from(byte & 127).checked_shl(shift)?;
        shift += 7;
        used += 1;
        more = byte & 128 != 0;
    }
    Some(((first >> 4) & 7, size, used))
}

fn offset_delta(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut used = 1;
    let mut byte = *bytes.first()?;
    let mut value = u64::from(byte & 127);
    while byte & 128 != 0 {
        byte = *bytes.get(used)?;
        value = value
            .checked_add(1)?
            .checked_mul(128)?
            .checked_add(u64::from(byte & 127))?;
        used += 1;
    }
    Some((value, used))
}

/// The stream's packed length is not written anywhere: reads twice as much until it is enough.
fn inflate_at(file: &File, from: u64, end: u64, size: usize) -> std::io::Result<Option<Vec<u8>>> {
    let all = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
    let mut length = (size + 64).min(all);
    loop {
        let mut packed = vec![0; length];
        file.read_exact_at(&mut packed, from)?;
        match miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&packed, size.max(1)) {
            Ok(bytes) if bytes.len() == size => return Ok(Some(bytes)),
            Ok(_) => return Ok(None),
            Err(_) if length < all && length < size.saturating_mul(2) + 4096 => {
                length = (length * 2).min(all);
            }
            Err(_) => return Ok(None),
        }
    }
}

fn apply(base: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0;
    let mut number = || -> Option<usize> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = *delta.get(at)?;
            at += 1;
            value |= usize::from(byte & 127).checked_shl(shift)?;
            shift += 7;
            if byte & 128 == 0 {
                return Some(value);
            }
        }
    };
    let (from, to) = (number()?, number()?);
    if from != base.len() || to > OBJECT_LIMIT {
        return None;
    }
    let mut out = Vec::with_capacity(to);
    while let Some(&op) = delta.get(at) {
        at += 1;
        if op & 128 == 0 {
            let length = usize::from(op);
            if length == 0 {
                return None;
            }
            out.extend_from_slice(delta.get(at..at + length)?);
            at += length;
            continue;
        }
        let mut field = |bits: std::ops::Range<u32>| -> Option<usize> {
            let mut value = 0;
            for (index, bit) in bits.enumerate() {
                if op & (1 << bit) != 0 {
                    value |= usize::from(*delta.get(at)?) << (8 * index);
                    at += 1;
                }
            }
            Some(value)
        };
        let start = field(0..4)?;
        let length = match field(4..7)? {
            0 => 0x10000,
            length => length,
        };
        out.extend_from_slice(base.get(start..start.checked_add(length)?)?);
    }
    (out.len() == to).then_some(out)
}

/// Where a pack has an object, by its index of version 2.
fn lookup(path: &Path, oid: Oid) -> Result<Option<u64>, GitError> {
    let io = |source| GitError::Io {
        path: path.to_owned(),
        source,
    };
    let malformed = || GitError::Malformed {
        path: path.to_owned(),
    };
    let file = File::open(path).map_err(io)?;
    let word = |at: u64| -> Result<u32, GitError> {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).map_err(io)?;
        Ok(u32::from_be_bytes(bytes))
    };
    if word(0)? != 0xff74_4f63 || word(4)? != 2 {
        return Err(malformed());
    }
    let fan = |byte: u64| word(8 + byte * 4);
    let first = u64::from(oid.0[0]);
    let total = u64::from(fan(255)?);
    let (mut low, mut high) = (
        if first == 0 {
            0
        } else {
            u64::from(fan(first - 1)?)
        },
        u64::from(fan(first)?),
    );
    let names = 8 + 1024;
    while low < high {
        let middle = (low + high) / 2;
        let mut name = [0; 20];
        file.read_exact_at(&mut name, names + middle * 20)
            .map_err(io)?;
        match name.cmp(&oid.0) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => {
                let offsets = names + total * 24;
                let offset = word(offsets + middle * 4)?;
                if offset & 0x8000_0000 == 0 {
                    return Ok(Some(u64::from(offset)));
                }
                let large = offsets + total * 4 + u64::from(offset & 0x7fff_ffff) * 8;
                return Ok(Some(
                    u64::from(word(large)?) << 32 | u64::from(word(large + 4)?),
                ));
            }
        }
    }
    Ok(None)
}
