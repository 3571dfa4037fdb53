//! A pack as a server sends it (gitformat-pack(5)): every object in it by its name, which is made of its content.
//!
//! A server may send anything: what is unpacked, how often, and what is held in memory for it have bounds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;
use std::rc::Rc;

use sha1::{Digest, Sha1};

use crate::object::{
    CHAIN_MAX, Form, Head, Kind, Oid, TreeItem, apply, is_file_name, tree as tree_items,
};

/// More than any file that belongs into a repository.
const OBJECT_MAX: u64 = 1 << 30;
/// Git makes no deltas of files of more than 512 MiB (core.bigFileThreshold), nor one longer than half of its result.
const DELTA_MAX: u64 = 256 << 20;
/// Chromium, without its history, has half a million.
const ENTRIES_MAX: u32 = 4 << 20;
/// All that is unpacked and put together for a pack. A large repository needs a tenth of it.
pub(crate) const WORK_MAX: u64 = 256 << 30;
/// Of objects that deltas stand on. What is more is made again.
const HELD_MAX: usize = 512 << 20;

/// What a delta stands on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Base {
    At(usize),
    Of(Oid),
}

#[derive(Clone, Copy)]
enum Kept {
    Whole(Kind),
    On(Base),
}

#[derive(Clone, Copy)]
struct Entry {
    kept: Kept,
    /// Where its zlib stream begins, and what it unpacks to.
    data: usize,
    size: u64,
}

/// An entry that is still to be named.
struct Open {
    offset: usize,
    kind: Kind,
    /// Of its chain.
    depth: usize,
    /// What it stands on, where that is held.
    base: Option<Rc<Vec<u8>>>,
}

pub(crate) struct Pack {
    bytes: Vec<u8>,
    entries: BTreeMap<usize, Entry>,
    offsets: BTreeMap<Oid, usize>,
    held_max: usize,
    work_left: Cell<u64>,
}

fn damaged() -> String {
    "its pack is damaged".to_owned()
}

impl Pack {
    /// `work`: how many bytes may be unpacked and put together for it in all, now and later.
    pub(crate) fn read(bytes: Vec<u8>, work: u64) -> Result<Self, String> {
        Self::within(bytes, HELD_MAX, work)
    }

    pub(crate) fn work_left(&self) -> u64 {
        self.work_left.get()
    }

    fn within(bytes: Vec<u8>, held_max: usize, work_max: u64) -> Result<Self, String> {
        let body = bytes.len().checked_sub(20).ok_or_else(damaged)?;
        let sum: [u8; 20] = Sha1::digest(&bytes[..body]).into();
        let version = bytes.get(4..8).ok_or_else(damaged)?;
        if !bytes.starts_with(b"PACK") || version != [0, 0, 0, 2] || sum != bytes[body..] {
            return Err(damaged());
        }
        let count = bytes.get(8..12).ok_or_else(damaged)?;
        let count = u32::from_be_bytes(count.try_into().map_err(|_| damaged())?);
        if count > ENTRIES_MAX {
            return Err(format!("it has more than {ENTRIES_MAX} objects"));
        }
        let mut pack = Self {
            bytes,
            entries: BTreeMap::new(),
            offsets: BTreeMap::new(),
            held_max,
            work_left: Cell::new(work_max),
        };
        let mut at = 12;
        for _ in 0..count {
            let (entry, end) = pack.entry(at, body)?;
            pack.entries.insert(at, entry);
            at = end;
        }
        if at != body {
            return Err(damaged());
        }
        pack.name_all()?;
        Ok(pack)
    }

    /// The length of what was sent.
    pub(crate) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Takes `bytes` of the work that is left.
    fn work(&self, bytes: u64) -> Result<(), String> {
        let left = self.work_left.get().checked_sub(bytes);
        self.work_left.set(left.ok_or(
            "its pack unpacks to more than any repository: its deltas stand on one another without end",
        )?);
        Ok(())
    }

    /// The entry at `start`, and where it ends.
    fn entry(&self, start: usize, body: usize) -> Result<(Entry, usize), String> {
        let bytes = self.bytes.get(start..body).ok_or_else(damaged)?;
        let Head { form, size, length } = Head::parse(bytes).ok_or_else(damaged)?;
        let kept = match form {
            Form::Whole(kind) => Kept::Whole(kind),
            Form::Before(back) => {
                let back = usize::try_from(back).map_err(|_| damaged())?;
                Kept::On(Base::At(start.checked_sub(back).ok_or_else(damaged)?))
            }
            Form::Of(oid) => Kept::On(Base::Of(oid)),
        };
        let (max, what) = match kept {
            Kept::Whole(_) => (OBJECT_MAX, "file"),
            Kept::On(_) => (DELTA_MAX, "delta"),
        };
        if size > max {
            return Err(format!("it has a {what} of more than {} MiB", max >> 20));
        }
        self.work(size)?;
        let mut stream = flate2::bufread::ZlibDecoder::new(&bytes[length..]);
        let read = std::io::copy(&mut (&mut stream).take(size + 1), &mut std::io::sink());
        let end = usize::try_from(stream.total_in()).map_err(|_| damaged())?;
        if read.is_err() || read.is_ok_and(|read| read != size) {
            return Err(damaged());
        }
        let data = start + length;
        Ok((Entry { kept, data, size }, data + end))
    }

    /// From the whole objects up to what stands on them, each put together once.
    fn name_all(&mut self) -> Result<(), String> {
        let mut standing: BTreeMap<Base, Vec<usize>> = BTreeMap::new();
        let mut left = Vec::new();
        for (offset, entry) in &self.entries {
            match entry.kept {
                Kept::On(base) => standing.entry(base).or_default().push(*offset),
                Kept::Whole(kind) => left.push(Open {
                    offset: *offset,
                    kind,
                    depth: 0,
                    base: None,
                }),
            }
        }
        let mut held = 0;
        while let Some(open) = left.pop() {
            let Open {
                offset,
                kind,
                depth,
                base,
            } = open;
            if depth > CHAIN_MAX {
                return Err(damaged());
            }
            let bytes = match base {
                None => self.at(offset)?.1,
                Some(base) => {
                    let entry = self.entries.get(&offset).ok_or_else(damaged)?;
                    let bytes = self.applied(&base, entry)?;
                    held -= Rc::into_inner(base).map_or(0, |base| base.len());
                    bytes
                }
            };
            let oid = Oid::of(kind, &bytes);
            self.offsets.insert(oid, offset);
            let mut above = standing.remove(&Base::At(offset)).unwrap_or_default();
            above.extend(standing.remove(&Base::Of(oid)).unwrap_or_default());
            let is_held = !above.is_empty() && held + bytes.len() <= self.held_max;
            let base = is_held.then(|| Rc::new(bytes));
            held += base.as_ref().map_or(0, |base| base.len());
            left.extend(above.into_iter().map(|offset| Open {
                offset,
                kind,
                depth: depth + 1,
                base: base.clone(),
            }));
        }
        if standing.is_empty() {
            Ok(())
        } else {
            Err("its pack stands on objects that are not in it".to_owned())
        }
    }

    /// The deltas on the way from an entry down to a whole object, and that one.
    fn chain(&self, offset: usize) -> Result<(Kind, Entry, Vec<Entry>), String> {
        let mut deltas = Vec::new();
        let mut offset = offset;
        loop {
            let entry = *self.entries.get(&offset).ok_or_else(damaged)?;
            offset = match entry.kept {
                Kept::Whole(kind) => return Ok((kind, entry, deltas)),
                Kept::On(Base::At(base)) => base,
                Kept::On(Base::Of(oid)) => *self.offsets.get(&oid).ok_or_else(damaged)?,
            };
            deltas.push(entry);
            if deltas.len() > CHAIN_MAX {
                return Err(damaged());
            }
        }
    }

    /// The object at an offset. Of its chain no more than one object, one delta and their result are in memory.
    fn at(&self, offset: usize) -> Result<(Kind, Vec<u8>), String> {
        let (kind, whole, deltas) = self.chain(offset)?;
        let mut bytes = self.inflated(&whole)?;
        for delta in deltas.iter().rev() {
            bytes = self.applied(&bytes, delta)?;
        }
        Ok((kind, bytes))
    }

    fn applied(&self, base: &[u8], delta: &Entry) -> Result<Vec<u8>, String> {
        let delta = self.inflated(delta)?;
        let bytes = apply(base, &delta, OBJECT_MAX).ok_or_else(damaged)?;
        self.work(bytes.len() as u64)?;
        Ok(bytes)
    }

    fn inflated(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        self.work(entry.size)?;
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).map_err(|_| damaged())?);
        flate2::bufread::ZlibDecoder::new(&self.bytes[entry.data..])
            .take(entry.size)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("its pack is damaged: {error}"))?;
        Ok(bytes)
    }

    pub(crate) fn object(&self, oid: Oid, wanted: Kind) -> Result<Vec<u8>, String> {
        let offset = self
            .offsets
            .get(&oid)
            .ok_or_else(|| format!("its server did not send the {} {oid}", wanted.name()))?;
        match self.at(*offset)? {
            (kind, bytes) if kind == wanted => Ok(bytes),
            (kind, _) => Err(format!(
                "{oid} is a {} and should be a {}",
                kind.name(),
                wanted.name()
            )),
        }
    }
}

/// The entries of a tree of the pack.
pub(crate) fn read_tree(pack: &Pack, tree: Oid) -> Result<Vec<TreeItem>, String> {
    let bytes = pack.object(tree, Kind::Tree)?;
    tree_items(&bytes)
        .filter(|items| items.iter().all(|item| is_file_name(&item.name)))
        .ok_or_else(|| format!("its tree {tree} is damaged, or has a name that no file may have"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// Of entries as they are after their sizes: form bits, what follows the size, content.
    pub(in super::super) fn packed(entries: &[(u8, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend(u32::try_from(entries.len()).unwrap().to_be_bytes());
        for (form, base, content) in entries {
            let mut size = content.len();
            let mut byte = form << 4 | (size & 15) as u8;
            size >>= 4;
            while size > 0 {
                pack.push(byte | 0x80);
                byte = (size & 127) as u8;
                size >>= 7;
            }
            pack.push(byte);
            pack.extend(base);
            let level = flate2::Compression::best();
            let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), level);
            stream.write_all(content).unwrap();
            pack.extend(stream.finish().unwrap());
        }
        let sum: [u8; 20] = Sha1::digest(&pack).into();
        pack.extend(sum);
        pack
    }

    /// One letter put before all of a base of so many bytes.
    fn before(letter: u8, length: usize) -> Vec<u8> {
        let varint = |mut number: usize| {
            let mut bytes = Vec::new();
            while number > 127 {
                bytes.push((number & 127) as u8 | 128);
                number >>= 7;
            }
            bytes.push(number as u8);
            bytes
        };
        let mut delta = varint(length);
        delta.extend(varint(length + 1));
        delta.extend([1, letter, 0xb0, length as u8, (length >> 8) as u8]);
        delta
    }

    /// A chain in which each stands on the one before, by its name, the last entry first.
    fn chain(length: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut contents = vec![vec![b'.'; 300]];
        let mut entries = vec![(3, Vec::new(), contents[0].clone())];
        for number in 1..=length {
            let below = &contents[number - 1];
            let oid = Oid::of(Kind::Blob, below);
            let letter = b'a' + (number % 26) as u8;
            entries.push((7, oid.0.to_vec(), before(letter, below.len())));
            contents.push([&[letter], &below[..]].concat());
        }
        entries.reverse();
        (packed(&entries), contents)
    }

    #[test]
    fn chains_are_put_together_in_little_memory_and_work() {
        let (bytes, contents) = chain(200);
        let all: u64 = contents.iter().map(|content| content.len() as u64).sum();
        // Each whole once, and its delta twice; were it made again for each, it would be a hundred times as much.
        let pack = Pack::within(bytes.clone(), HELD_MAX, 2 * all).unwrap();
        pack.work_left.set(WORK_MAX);
        for content in &contents {
            let oid = Oid::of(Kind::Blob, content);
            assert_eq!(&pack.object(oid, Kind::Blob).unwrap(), content);
        }
        assert!(
            pack.object(Oid::of(Kind::Blob, &contents[0]), Kind::Tree)
                .is_err()
        );
        // With nothing held it is the same pack, and more work, which has an end.
        let without = Pack::within(bytes.clone(), 0, WORK_MAX).unwrap();
        assert_eq!(without.offsets, pack.offsets);
        let error = Pack::within(bytes, 0, 2 * all).err().unwrap();
        assert!(error.contains("without end"), "{error}");
    }

    #[test]
    fn what_stands_on_nothing_or_is_longer_than_any_is_refused() {
        let refused = |entries: &[(u8, Vec<u8>, Vec<u8>)]| {
            Pack::read(packed(entries), WORK_MAX).err().unwrap()
        };
        let nowhere = refused(&[(7, vec![7; 20], before(b'a', 3))]);
        assert!(nowhere.contains("not in it"), "{nowhere}");
        let (bytes, _) = chain(CHAIN_MAX + 1);
        assert!(Pack::read(bytes, WORK_MAX).is_err());
        let mut many = b"PACK\0\0\0\x02\xff\xff\xff\xff".to_vec();
        let sum: [u8; 20] = Sha1::digest(&many).into();
        many.extend(sum);
        let many = Pack::read(many, WORK_MAX).err().unwrap();
        assert!(many.contains("more than"), "{many}");
        // 300 MiB of a delta, as its head has it.
        let mut long = b"PACK\0\0\0\x02\0\0\0\x01".to_vec();
        long.extend([0xe0, 0x80, 0x80, 0xb0, 0x09, 5]);
        long.extend([0; 20]);
        let body = long.len() - 20;
        let sum: [u8; 20] = Sha1::digest(&long[..body]).into();
        long[body..].copy_from_slice(&sum);
        let long = Pack::read(long, WORK_MAX).err().unwrap();
        assert!(long.contains("delta of more"), "{long}");
    }

    #[test]
    fn what_is_no_pack_is_damaged() {
        for bytes in [Vec::new(), b"PACK".to_vec(), vec![0; 40]] {
            assert!(Pack::read(bytes, WORK_MAX).is_err());
        }
    }
}
