//! Git's objects, loose and packed (gitformat-pack(5)), read only.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_git::object::{CHAIN_MAX, Form, Head, Kind, Oid, apply};

use super::GitError;

/// Commits and trees are small; a larger one is a mistake rather than a tree.
const OBJECT_LIMIT: usize = 64 * 1024 * 1024;

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
        let inflated = |(from, size)| inflate_at(&file, from, end, size).map_err(io);
        // Where each is: only the object and one delta at a time are in memory.
        let mut deltas = Vec::new();
        let mut at = offset;
        let (kind, mut object) = loop {
            if deltas.len() > CHAIN_MAX {
                return Err(damaged());
            }
            let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let mut head = vec![0; left.min(Head::MAX)];
            file.read_exact_at(&mut head, at).map_err(io)?;
            let Head { form, size, length } = Head::parse(&head).ok_or_else(damaged)?;
            let size = usize::try_from(size).map_err(|_| damaged())?;
            if size > OBJECT_LIMIT {
                return Err(damaged());
            }
            let data = (at + length as u64, size);
            match form {
                Form::Whole(kind) => break (kind, inflated(data)?.ok_or_else(damaged)?),
                Form::Before(back) => {
                    deltas.push(data);
                    at = at.checked_sub(back).ok_or_else(damaged)?;
                }
                Form::Of(base) => {
                    deltas.push(data);
                    break self.read(base)?;
                }
            }
        };
        for delta in deltas.into_iter().rev() {
            let delta = inflated(delta)?.ok_or_else(damaged)?;
            object = apply(&object, &delta, OBJECT_LIMIT as u64).ok_or_else(damaged)?;
        }
        Ok((kind, object))
    }
}

fn loose(bytes: &[u8]) -> Option<(Kind, Vec<u8>)> {
    let mut object =
        miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(bytes, OBJECT_LIMIT).ok()?;
    let nul = object.iter().position(|byte| *byte == 0)?;
    let kind = Kind::parse(object[..nul].split(|byte| *byte == b' ').next()?)?;
    object.drain(..=nul);
    Some((kind, object))
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
