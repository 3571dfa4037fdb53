//! Git's objects as bytes: their names, the entries of packs, deltas and trees (gitformat-pack(5)). Who has the bytes reads them
//! with this: the pack that a server sends here, and a repository of the machine in the command line.

use std::fmt;

use sha1::{Digest, Sha1};

/// A chain of deltas is no longer: the most that `git repack --depth` takes, which has 50 by default.
pub const CHAIN_MAX: usize = 4095;

/// A SHA-1 name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oid(pub [u8; 20]);

impl Oid {
    /// Of forty hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 40 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 20];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The name of an object with this content.
    pub fn of(kind: Kind, content: &[u8]) -> Self {
        let mut hash = Sha1::new();
        hash.update(format!("{} {}\0", kind.name(), content.len()));
        hash.update(content);
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Commit,
    Tree,
    Blob,
    Tag,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }

    /// As a loose object begins.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let all = [Self::Commit, Self::Tree, Self::Blob, Self::Tag];
        all.into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

/// How an entry of a pack is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Whole(Kind),
    /// A delta on the entry that begins so many bytes before.
    Before(u64),
    /// A delta on this object.
    Of(Oid),
}

/// What an entry begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub form: Form,
    /// That its zlib stream unpacks to.
    pub size: u64,
    /// Where that stream begins, from the entry's own beginning.
    pub length: usize,
}

impl Head {
    /// As long as any is.
    pub const MAX: usize = 64;

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let first = next(&mut rest)?;
        let (mut size, mut shift, mut last) = (u64::from(first & 15), 4, first);
        while last & 0x80 != 0 {
            last = next(&mut rest)?;
            size |= u64::from(last & 0x7f).checked_shl(shift)?;
            shift += 7;
        }
        let form = match (first >> 4) & 7 {
            1 => Form::Whole(Kind::Commit),
            2 => Form::Whole(Kind::Tree),
            3 => Form::Whole(Kind::Blob),
            4 => Form::Whole(Kind::Tag),
            6 => {
                let mut byte = next(&mut rest)?;
                let mut back = u64::from(byte & 0x7f);
                while byte & 0x80 != 0 {
                    byte = next(&mut rest)?;
                    back = back.checked_add(1)?.checked_mul(128)? | u64::from(byte & 0x7f);
                }
                // Always before: no chain is a circle.
                (back > 0).then_some(Form::Before(back))?
            }
            7 => {
                let (oid, behind) = rest.split_first_chunk()?;
                rest = behind;
                Form::Of(Oid(*oid))
            }
            _ => return None,
        };
        Some(Self {
            form,
            size,
            length: bytes.len() - rest.len(),
        })
    }
}

fn next(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

/// What a delta makes of its base ("Deltified representation"); none where it is damaged, or makes more than `max` bytes.
pub fn apply(base: &[u8], mut delta: &[u8], max: u64) -> Option<Vec<u8>> {
    let (from, to) = (number(&mut delta)?, number(&mut delta)?);
    if from != base.len() as u64 || to > max {
        return None;
    }
    let to = usize::try_from(to).ok()?;
    let mut out = Vec::with_capacity(to);
    while let Some(command) = next(&mut delta) {
        let piece = if command & 0x80 != 0 {
            let start = field(&mut delta, 4, command & 15)?;
            let length = match field(&mut delta, 3, (command >> 4) & 7)? {
                0 => 0x1_0000,
                length => length,
            };
            base.get(start..start.checked_add(length)?)?
        } else {
            let (piece, rest) = delta.split_at_checked(usize::from(command))?;
            delta = rest;
            piece
        };
        // A command that does nothing is reserved.
        if piece.is_empty() || piece.len() > to - out.len() {
            return None;
        }
        out.extend(piece);
    }
    (out.len() == to).then_some(out)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0u64, 0);
    loop {
        let byte = next(bytes)?;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
}

/// Of `count` bytes, those that `bits` names; the others are zero.
fn field(bytes: &mut &[u8], count: u32, bits: u8) -> Option<usize> {
    let mut number = 0;
    for place in 0..count {
        if bits & (1 << place) != 0 {
            number |= usize::from(next(bytes)?) << (8 * place);
        }
    }
    Some(number)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Folder,
    File,
    Executable,
    Link,
    Submodule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeItem {
    pub mode: Mode,
    /// Whatever the tree says, which may be no name of a file.
    pub name: Vec<u8>,
    pub oid: Oid,
}

/// Whether a tree's name may be a file's: Git itself refuses what leads elsewhere, and a repository in a repository.
pub fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.contains(&b'/')
        && !matches!(name, b"." | b"..")
        && !name.eq_ignore_ascii_case(b".git")
}

/// What a tree says: `MODE NAME\0` and twenty bytes, again and again.
pub fn tree(mut bytes: &[u8]) -> Option<Vec<TreeItem>> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let nul = bytes.iter().position(|byte| *byte == 0)?;
        let space = bytes[..nul].iter().position(|byte| *byte == b' ')?;
        let mode = match &bytes[..space] {
            b"40000" => Mode::Folder,
            b"100755" => Mode::Executable,
            b"120000" => Mode::Link,
            b"160000" => Mode::Submodule,
            // Old repositories have 100664 as well.
            other if other.starts_with(b"100") => Mode::File,
            _ => return None,
        };
        let name = bytes[space + 1..nul].to_vec();
        let (oid, rest) = bytes[nul + 1..].split_first_chunk()?;
        let oid = Oid(*oid);
        items.push(TreeItem { mode, name, oid });
        bytes = rest;
    }
    Some(items)
}

/// The tree that a commit is of.
pub fn tree_of(commit: &[u8]) -> Option<Oid> {
    let line = commit.split(|byte| *byte == b'\n').next()?;
    Oid::parse(std::str::from_utf8(line).ok()?.strip_prefix("tree ")?)
}

/// What a tag names.
pub fn tagged(tag: &[u8]) -> Option<Oid> {
    let line = tag.split(|byte| *byte == b'\n').next()?;
    Oid::parse(std::str::from_utf8(line).ok()?.strip_prefix("object ")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_with_their_form_and_size() {
        let head =
            |bytes: &[u8]| Head::parse(bytes).map(|head| (head.form, head.size, head.length));
        assert_eq!(head(&[0x35, 9]), Some((Form::Whole(Kind::Blob), 5, 1)));
        assert_eq!(
            head(&[0xb5, 0x01]),
            Some((Form::Whole(Kind::Blob), 5 + 16, 2))
        );
        assert_eq!(head(&[0x63, 0x80, 0x05]), Some((Form::Before(133), 3, 3)));
        let mut of = vec![0x73];
        of.extend([7; 20]);
        assert_eq!(head(&of), Some((Form::Of(Oid([7; 20])), 3, 21)));
        let long = [[0xff; 12].as_slice(), &[0x01]].concat();
        for wrong in [&[][..], &[0x63, 0], &[0x03], &of[..20], &[0xb5], &long] {
            assert_eq!(head(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn deltas_copy_and_insert_and_nothing_else() {
        // Copy 3 from 1, insert `xy`.
        let delta = [5, 5, 0x91, 1, 3, 2, b'x', b'y'];
        assert_eq!(apply(b"abcde", &delta, 5).unwrap(), b"bcdxy");
        assert_eq!(apply(b"abcde", &delta, 4), None);
        for wrong in [
            &[4, 5, 0x91, 1, 3, 2, b'x', b'y'][..],
            &[5, 6, 0x91, 1, 3, 2, b'x', b'y'],
            &[5, 4, 0x91, 1, 3, 2, b'x', b'y'],
            &[5, 5, 0x91, 4, 3, 2, b'x', b'y'],
            &[5, 5, 0x91, 1, 3, 2, b'x'],
            &[5, 0, 0],
            &[5],
        ] {
            assert_eq!(apply(b"abcde", wrong, 100), None, "{wrong:?}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_known() {
        let said = |mode: &str, name: &str| {
            let mut bytes = format!("{mode} {name}\0").into_bytes();
            bytes.extend([7; 20]);
            bytes
        };
        let items = tree(&said("100644", "a b")).unwrap();
        let item = TreeItem {
            mode: Mode::File,
            name: b"a b".to_vec(),
            oid: Oid([7; 20]),
        };
        assert_eq!(items, [item]);
        assert!(is_file_name(&items[0].name));
        for name in ["..", ".", "a/b", ".GIT", "", &"x".repeat(256)] {
            let items = tree(&said("40000", name)).unwrap();
            assert!(!is_file_name(&items[0].name), "{name}");
        }
        for wrong in [said("7", "a"), said("100644", "a")[..20].to_vec()] {
            assert_eq!(tree(&wrong), None, "{wrong:?}");
        }
    }
}
