//! The one tar writer: POSIX ustar with pax records where a value does not fit.
//!
//! Sorted by path, the root as `./`, numeric owners without names, no field that depends on the machine or
//! the day. A tree has one such stream and no other, since image digests are made of it.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use kiln_model::Digest;

use crate::content::{Content, copy_content};
use crate::layer::{Entry, Kind, LayerError, Tree, name_of, to_path};

use super::{BLOCK, OPAQUE, PAX_XATTR, WHITEOUT};

/// Of the bytes that a tree becomes: changed whenever they are, which gives every layer another digest. Part of the keys of a bake's steps,
/// and of `kiln.lock`.
pub const VERSION: u32 = 1;

/// Takes a tar stream and is told of its parts, where it may want to cut it.
pub(crate) trait Parts: Write {
    /// The next `size` bytes are a file's content, of which these are the digests of the pieces, where they are known.
    fn content(&mut self, size: u64, pieces: &[Digest]) -> io::Result<()>;
    /// The entry `key` is complete, its padding included.
    fn entry_end(&mut self, key: &[u8]) -> io::Result<()>;
}

/// Does not care for the parts.
struct Whole<W>(W);

impl<W: Write> Write for Whole<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<P: Parts> Parts for &mut P {
    fn content(&mut self, size: u64, pieces: &[Digest]) -> io::Result<()> {
        (**self).content(size, pieces)
    }

    fn entry_end(&mut self, key: &[u8]) -> io::Result<()> {
        (**self).entry_end(key)
    }
}

impl<W: Write> Parts for Whole<W> {
    fn content(&mut self, _: u64, _: &[Digest]) -> io::Result<()> {
        Ok(())
    }

    fn entry_end(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Writes `tree` as a layer's tar stream, reading each file's content once, in order.
pub fn write(tree: &Tree, out: impl Write) -> Result<(), LayerError> {
    write_parts(tree, Whole(out))
}

/// As `write`, and says where the parts of the stream begin and end.
pub(crate) fn write_parts(tree: &Tree, out: impl Parts) -> Result<(), LayerError> {
    let tree = tree.settled()?;
    let mut writer = Writer {
        out,
        buffer: vec![0; 256 << 10],
        header: Vec::with_capacity(4096),
    };
    for (key, entry) in tree.keys() {
        writer.entry(key, entry)?;
        writer.out.entry_end(key).map_err(LayerError::Write)?;
    }
    writer
        .out
        .write_all(&[0; 2 * BLOCK])
        .map_err(LayerError::Write)?;
    writer.out.flush().map_err(LayerError::Write)
}

struct Writer<W> {
    out: W,
    buffer: Vec<u8>,
    header: Vec<u8>,
}

/// What a tar header says, before it is laid out.
struct Header<'a> {
    path: Vec<u8>,
    link: &'a [u8],
    size: u64,
    kind: u8,
    device: (u32, u32),
    entry: &'a Entry,
}

impl<W: Parts> Writer<W> {
    fn entry(&mut self, key: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let name = name_of(key);
        if name.starts_with(WHITEOUT) {
            return Err(LayerError::ReservedName {
                path: to_path(key).to_path_buf(),
            });
        }
        let mut header = Header {
            path: key.to_vec(),
            link: &[],
            size: 0,
            kind: b'0',
            device: (0, 0),
            entry,
        };
        let mut content = None;
        match &entry.kind {
            Kind::Dir { .. } => {
                header.kind = b'5';
                if key.is_empty() {
                    header.path.push(b'.');
                }
                header.path.push(b'/');
            }
            Kind::File {
                content: from,
                size,
            } => {
                header.size = *size;
                content = Some(from);
            }
            Kind::Symlink { target } => (header.kind, header.link) = (b'2', target),
            Kind::CharDev { major, minor } => {
                (header.kind, header.device) = (b'3', (*major, *minor));
            }
            Kind::BlockDev { major, minor } => {
                (header.kind, header.device) = (b'4', (*major, *minor));
            }
            Kind::Fifo => header.kind = b'6',
            Kind::Hardlink { target } => {
                (header.kind, header.link) = (b'1', target.as_os_str().as_bytes());
            }
            Kind::Whiteout => {
                header.path.truncate(key.len() - name.len());
                header.path.extend_from_slice(WHITEOUT);
                header.path.extend_from_slice(name);
            }
        }
        self.header(&header)?;
        if let Some(content) = content {
            let size = header.size;
            let pieces = match content {
                Content::Known { file, .. } => &file.pieces[..],
                _ => &[],
            };
            self.out.content(size, pieces).map_err(LayerError::Write)?;
            copy_content(key, content, 0, size, &mut self.buffer, &mut self.out)?;
            let rest = (size % BLOCK as u64) as usize;
            if rest != 0 {
                self.out
                    .write_all(&[0; BLOCK][rest..])
                    .map_err(LayerError::Write)?;
            }
        }
        if matches!(entry.kind, Kind::Dir { opaque: true }) {
            let mut path = key.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(OPAQUE);
            let marker = Entry::new(Kind::Whiteout, 0).mtime(entry.mtime);
            self.header(&Header {
                path,
                link: &[],
                size: 0,
                kind: b'0',
                device: (0, 0),
                entry: &marker,
            })?;
        }
        Ok(())
    }

    fn header(&mut self, header: &Header<'_>) -> Result<(), LayerError> {
        let mut pax = Vec::new();
        let entry = header.entry;
        if header.path.len() > 100 {
            pax_record(&mut pax, b"path", &header.path);
        }
        if header.link.len() > 100 {
            pax_record(&mut pax, b"linkpath", header.link);
        }
        for (name, value, digits) in [
            ("size", header.size as i128, 11),
            ("uid", entry.uid.into(), 7),
            ("gid", entry.gid.into(), 7),
            ("mtime", entry.mtime.into(), 11),
        ] {
            if !fits(value, digits) {
                pax_record(&mut pax, name.as_bytes(), value.to_string().as_bytes());
            }
        }
        // A hard link is the other name of a file that has its attributes already.
        if header.kind != b'1' {
            for (name, value) in &entry.xattrs {
                if name.contains(&b'=') {
                    return Err(LayerError::Xattr {
                        path: to_path(&header.path).to_path_buf(),
                        name: String::from_utf8_lossy(name).into_owned(),
                        reason: "its name has a `=`",
                    });
                }
                pax_record(&mut pax, &[PAX_XATTR, name].concat(), value);
            }
        }
        self.header.clear();
        if !pax.is_empty() {
            let mut path = b"PaxHeaders/".to_vec();
            path.extend_from_slice(&header.path[..header.path.len().min(89)]);
            let plain = Entry::new(Kind::Fifo, 0o644);
            block(
                &mut self.header,
                &Header {
                    path,
                    link: &[],
                    size: pax.len() as u64,
                    kind: b'x',
                    device: (0, 0),
                    entry: &plain,
                },
            );
            self.header.extend_from_slice(&pax);
            let end = self.header.len().next_multiple_of(BLOCK);
            self.header.resize(end, 0);
        }
        block(&mut self.header, header);
        self.out.write_all(&self.header).map_err(LayerError::Write)
    }
}

/// One 512-byte ustar header. Values that do not fit are cut: a pax record before it has them.
fn block(out: &mut Vec<u8>, header: &Header<'_>) {
    let entry = header.entry;
    let mut block = [0; BLOCK];
    put(&mut block[0..100], &header.path);
    octal(&mut block[100..108], entry.mode.into());
    octal(&mut block[108..116], entry.uid.into());
    octal(&mut block[116..124], entry.gid.into());
    octal(&mut block[124..136], header.size.into());
    octal(&mut block[136..148], entry.mtime.into());
    block[148..156].fill(b' ');
    block[156] = header.kind;
    put(&mut block[157..257], header.link);
    put(&mut block[257..265], b"ustar\x0000");
    octal(&mut block[329..337], header.device.0.into());
    octal(&mut block[337..345], header.device.1.into());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let count = bytes.len().min(field.len());
    field[..count].copy_from_slice(&bytes[..count]);
}

/// Octal digits and a NUL; zero where the number has more digits than the field.
fn octal(field: &mut [u8], value: i128) {
    let digits = field.len() - 1;
    let value = if fits(value, digits as u32) { value } else { 0 };
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

fn fits(value: i128, digits: u32) -> bool {
    (0..1 << (3 * digits)).contains(&value)
}

/// `LENGTH NAME=VALUE\n`, where the length counts its own digits (POSIX pax, "Extended Header").
fn pax_record(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(name);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_another_version() {
        let mut tree = Tree::new();
        let mut file = Entry::bytes(*b"text", 0o4755).owner(1000, 3_000_000);
        file.xattrs.insert(b"user.name".to_vec(), b"value".to_vec());
        let link = Entry::symlink("../a/file").mtime(7);
        let hard = Kind::Hardlink {
            target: "a/file".into(),
        };
        let opaque = Kind::Dir { opaque: true };
        for (path, entry) in [
            ("a/file", file),
            ("a/link", link),
            ("b", Entry::new(opaque, 0o750)),
            ("b/hard", Entry::new(hard, 0)),
            ("b/gone", Entry::new(Kind::Whiteout, 0)),
            ("b/pipe", Entry::new(Kind::Fifo, 0o600)),
        ] {
            tree.insert(path, entry).unwrap();
        }
        tree.insert("c/".to_owned() + &"long".repeat(60), Entry::dir(0o700))
            .unwrap();
        let mut bytes = Vec::new();
        write(&tree, &mut bytes).unwrap();
        let written = (VERSION, Digest::of(&bytes).to_string());
        // Where this fails, VERSION goes up by one, and the digest is the new one.
        let digest = "sha256:217d7e2cd927b18cffb6e42526d7be19cabe90e253adaf596598d2eb17741ab1";
        assert_eq!(written, (1, digest.to_owned()));
    }

    #[test]
    fn a_pax_length_counts_its_own_digits() {
        for length in [1, 4, 5, 6, 90, 91, 92, 93, 985, 990, 995] {
            let mut out = Vec::new();
            pax_record(&mut out, b"k", &vec![b'v'; length]);
            let digits = out.split(|byte| *byte == b' ').next().unwrap();
            let said: usize = std::str::from_utf8(digits).unwrap().parse().unwrap();
            assert_eq!(said, out.len(), "value of {length} bytes");
        }
    }
}
