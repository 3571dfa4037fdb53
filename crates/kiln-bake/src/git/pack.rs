//! A pack as a server sends it (gitformat-pack(5)): every object in it by its name, which is made of its content.

use std::collections::BTreeMap;
use std::io::Read;

use sha1::{Digest, Sha1};

use super::Oid;

/// More than any file that belongs into a repository.
const OBJECT_MAX: u64 = 1 << 30;
/// Git's own default for the length of a chain of deltas is 50.
const CHAIN_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }
}

/// How an entry is kept.
#[derive(Clone, Copy)]
enum Form {
    Whole(Kind),
    /// On the entry at this offset.
    Delta(usize),
    DeltaOf(Oid),
}

struct Entry {
    form: Form,
    /// Where its zlib stream begins, and what it unpacks to.
    data: usize,
    size: u64,
}

pub(super) struct Pack {
    bytes: Vec<u8>,
    entries: BTreeMap<usize, Entry>,
    offsets: BTreeMap<Oid, usize>,
}

impl Pack {
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, String> {
        let damaged = || "its pack is damaged".to_owned();
        let body = bytes.len().checked_sub(20).ok_or_else(damaged)?;
        let sum: [u8; 20] = Sha1::digest(&bytes[..body]).into();
        let version = bytes.get(4..8).ok_or_else(damaged)?;
        if !bytes.starts_with(b"PACK") || version != [0, 0, 0, 2] || sum != bytes[body..] {
            return Err(damaged());
        }
        let count = bytes.get(8..12).ok_or_else(damaged)?;
        let count = u32::from_be_bytes(count.try_into().map_err(|_| damaged())?);
        let mut pack = Self {
            bytes,
            entries: BTreeMap::new(),
            offsets: BTreeMap::new(),
        };
        let mut at = 12;
        for _ in 0..count {
            let (entry, end) = pack.entry(at, body).ok_or_else(damaged)?;
            pack.entries.insert(at, entry);
            at = end;
        }
        if at != body {
            return Err(damaged());
        }
        pack.name_all()?;
        Ok(pack)
    }

    /// The entry at `start`, and where it ends.
    fn entry(&self, start: usize, body: usize) -> Option<(Entry, usize)> {
        let bytes = &self.bytes[..body];
        let mut at = start;
        let mut next = || {
            let byte = bytes.get(at).copied();
            at += 1;
            byte
        };
        let first = next()?;
        let mut size = u64::from(first & 15);
        let mut shift = 4;
        let mut last = first;
        while last & 0x80 != 0 {
            last = next()?;
            size |= u64::from(last & 0x7f).checked_shl(shift)?;
            shift += 7;
        }
        let form = match (first >> 4) & 7 {
            1 => Form::Whole(Kind::Commit),
            2 => Form::Whole(Kind::Tree),
            3 => Form::Whole(Kind::Blob),
            4 => Form::Whole(Kind::Tag),
            6 => {
                let mut byte = next()?;
                let mut back = usize::from(byte & 0x7f);
                while byte & 0x80 != 0 {
                    byte = next()?;
                    back = back.checked_add(1)?.checked_mul(128)? | usize::from(byte & 0x7f);
                }
                // Always before: no chain is a circle.
                let base = start.checked_sub(back).filter(|base| *base < start)?;
                Form::Delta(base)
            }
            7 => {
                let oid: [u8; 20] = bytes.get(at..at + 20)?.try_into().ok()?;
                at += 20;
                Form::DeltaOf(Oid(oid))
            }
            _ => return None,
        };
        if size > OBJECT_MAX {
            return None;
        }
        let mut stream = flate2::bufread::ZlibDecoder::new(bytes.get(at..)?);
        let read = std::io::copy(&mut (&mut stream).take(size + 1), &mut std::io::sink()).ok()?;
        let end = at + usize::try_from(stream.total_in()).ok()?;
        (read == size).then_some((
            Entry {
                form,
                data: at,
                size,
            },
            end,
        ))
    }

    /// Deltas may stand on what comes later: rounds, until nothing is left or nothing new is found.
    fn name_all(&mut self) -> Result<(), String> {
        let mut left: Vec<usize> = self.entries.keys().copied().collect();
        while !left.is_empty() {
            let before = left.len();
            let mut waiting = Vec::new();
            for offset in left {
                match self.at(offset)? {
                    Some((kind, bytes)) => {
                        let mut hash = Sha1::new();
                        hash.update(format!("{} {}\0", kind.name(), bytes.len()));
                        hash.update(&bytes);
                        self.offsets.insert(Oid(hash.finalize().into()), offset);
                    }
                    None => waiting.push(offset),
                }
            }
            left = waiting;
            if left.len() == before {
                return Err("its pack stands on objects that are not in it".to_owned());
            }
        }
        Ok(())
    }

    /// The object at an offset; none where what it stands on has no name yet.
    fn at(&self, offset: usize) -> Result<Option<(Kind, Vec<u8>)>, String> {
        let damaged = || "its pack is damaged".to_owned();
        let mut deltas = Vec::new();
        let mut offset = offset;
        let kind = loop {
            let entry = self.entries.get(&offset).ok_or_else(damaged)?;
            deltas.push(self.inflated(entry)?);
            if deltas.len() > CHAIN_MAX {
                return Err(damaged());
            }
            offset = match entry.form {
                Form::Whole(kind) => break kind,
                Form::Delta(base) => base,
                Form::DeltaOf(oid) => match self.offsets.get(&oid) {
                    Some(base) => *base,
                    None => return Ok(None),
                },
            };
        };
        let mut whole = deltas.pop().ok_or_else(damaged)?;
        while let Some(delta) = deltas.pop() {
            whole = apply(&whole, &delta).ok_or_else(damaged)?;
        }
        Ok(Some((kind, whole)))
    }

    fn inflated(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        flate2::bufread::ZlibDecoder::new(&self.bytes[entry.data..])
            .take(entry.size)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("its pack is damaged: {error}"))?;
        Ok(bytes)
    }

    pub(super) fn object(&self, oid: Oid, wanted: Kind) -> Result<Vec<u8>, String> {
        let offset = self
            .offsets
            .get(&oid)
            .ok_or_else(|| format!("its server did not send the {} {oid}", wanted.name()))?;
        match self.at(*offset)? {
            Some((kind, bytes)) if kind == wanted => Ok(bytes),
            Some((kind, _)) => Err(format!(
                "{oid} is a {} and should be a {}",
                kind.name(),
                wanted.name()
            )),
            None => Err("its pack is damaged".to_owned()),
        }
    }
}

/// What a delta makes of its base (gitformat-pack(5), "Deltified representation").
fn apply(base: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0;
    let mut next = || {
        let byte = delta.get(at).copied();
        at += 1;
        byte
    };
    let mut size = || {
        let (mut size, mut shift) = (0u64, 0);
        loop {
            let byte = next()?;
            size |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(size);
            }
        }
    };
    let (from, to) = (size()?, size()?);
    if from != base.len() as u64 || to > OBJECT_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(usize::try_from(to).ok()?);
    while let Some(command) = delta.get(at).copied() {
        at += 1;
        let mut take = |count: u32, bits: u8| {
            let mut number = 0usize;
            for place in 0..count {
                if bits & (1 << place) != 0 {
                    number |= usize::from(*delta.get(at)?) << (8 * place);
                    at += 1;
                }
            }
            Some(number)
        };
        if command & 0x80 != 0 {
            let start = take(4, command & 15)?;
            let length = match take(3, (command >> 4) & 7)? {
                0 => 0x1_0000,
                length => length,
            };
            out.extend(base.get(start..start.checked_add(length)?)?);
        } else if command != 0 {
            let end = at + usize::from(command);
            out.extend(delta.get(at..end)?);
            at = end;
        } else {
            return None;
        }
        if out.len() as u64 > to {
            return None;
        }
    }
    (out.len() as u64 == to).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_copy_and_insert_and_nothing_else() {
        // Copy 3 from 1, insert `xy`.
        let delta = [5, 5, 0x91, 1, 3, 2, b'x', b'y'];
        assert_eq!(apply(b"abcde", &delta).unwrap(), b"bcdxy");
        for wrong in [
            &[4, 5, 0x91, 1, 3, 2, b'x', b'y'][..],
            &[5, 6, 0x91, 1, 3, 2, b'x', b'y'],
            &[5, 5, 0x91, 4, 3, 2, b'x', b'y'],
            &[5, 5, 0x91, 1, 3, 2, b'x'],
            &[5, 5, 0],
            &[5],
        ] {
            assert_eq!(apply(b"abcde", wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_pack_is_damaged() {
        for bytes in [Vec::new(), b"PACK".to_vec(), vec![0; 40]] {
            assert!(Pack::read(bytes).is_err());
        }
    }
}
