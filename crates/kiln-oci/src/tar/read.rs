//! Reading a layer's tar stream, which may be anybody's: every length is checked before it is believed, no
//! path leaves the root, and what a hostile stream could make us keep in memory is bounded.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::content::Content;
use crate::erofs;
use crate::layer::{Entry, Kind, LayerError, Tree, name_of, normalise, parent_of};

use super::{BLOCK, OPAQUE, PAX_XATTR, WHITEOUT};

/// What a layer may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: u64,
    /// Bytes of file content.
    pub content: u64,
    /// Bytes of names, link targets and extended attributes.
    pub metadata: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            content: 1 << 40,
            metadata: 2 << 30,
        }
    }
}

/// The longest pax or GNU record: an extended attribute of Linux has 64 KiB at most, an entry several.
const RECORD_MAX: u64 = 8 << 20;

impl Tree {
    /// Reads a layer's tar stream to its end. File contents go to `spill`, an empty file open for reading and
    /// writing, of which the tree's entries are then ranges.
    ///
    /// A path that leaves the root by `..` is an error; an absolute one counts from the layer's root. A hard
    /// link must name a file of the same layer. Names and attributes that no Linux file system takes, and so the layer's
    /// other form does not, are an error. Understands ustar, pax and GNU long names; not sparse files.
    pub fn from_tar(stream: impl Read, spill: File, limits: Limits) -> Result<Self, LayerError> {
        let spill = Arc::new(spill);
        let writer = spill
            .try_clone()
            .map_err(LayerError::Write)
            .map(|file| BufWriter::with_capacity(256 << 10, file))?;
        let mut reader = TarReader {
            stream,
            offset: 0,
            spill: spill.clone(),
            writer,
            spilled: 0,
            metadata: 0,
            limits,
            tree: Self::new(),
        };
        reader.read_all()?;
        reader.writer.flush().map_err(LayerError::Write)?;
        let mut tree = reader.tree;
        tree.settle_links()?;
        for (key, entry) in tree.keys() {
            erofs::has_form(key, entry)?;
        }
        Ok(tree)
    }
}

/// Values that stand in for those of the next header.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
}

struct TarReader<R> {
    stream: R,
    offset: u64,
    spill: Arc<File>,
    writer: BufWriter<File>,
    spilled: u64,
    metadata: u64,
    limits: Limits,
    tree: Tree,
}

impl<R: Read> TarReader<R> {
    fn read_all(&mut self) -> Result<(), LayerError> {
        let mut next = Overrides::default();
        let mut count = 0;
        let mut pending = false;
        while let Some(block) = self.next_header()? {
            let size = self.number(&block[124..136])?;
            pending = matches!(block[156], b'x' | b'L' | b'K');
            match block[156] {
                b'x' => {
                    let record = self.record(size)?;
                    self.pax(&record, &mut next)?;
                }
                // Global records: git writes a comment; nothing that a layer's files need.
                b'g' => drop(self.record(size)?),
                b'L' => next.path = Some(until_nul(&self.record(size)?).to_vec()),
                b'K' => next.link = Some(until_nul(&self.record(size)?).to_vec()),
                kind => {
                    count += 1;
                    if count > self.limits.entries {
                        return Err(LayerError::Limit {
                            what: "entries",
                            limit: self.limits.entries,
                        });
                    }
                    self.entry(&block, kind, size, std::mem::take(&mut next))?;
                }
            }
        }
        if pending {
            return Err(self.invalid("it ends after a record that speaks of an entry"));
        }
        // To the end, so that a digest over the stream covers all of it.
        io::copy(&mut self.stream, &mut io::sink()).map_err(LayerError::Read)?;
        Ok(())
    }

    /// The next header; none at the end, which is a block of zeros, or nothing.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.invalid("it ends within a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u64::from(b' '),
                _ => u64::from(*byte),
            })
            .sum();
        if self.number(&block[148..156])? != sum {
            return Err(self.invalid("the checksum of a header is wrong"));
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        kind: u8,
        size: u64,
        next: Overrides,
    ) -> Result<(), LayerError> {
        let path = match next.path {
            Some(path) => path,
            None => self.header_path(block),
        };
        let link = next
            .link
            .unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        let size = next.size.unwrap_or(size);
        let key = normalise(bytes_path(&path))?;
        let mut entry = Entry::new(Kind::Fifo, self.number(&block[100..108])? as u32);
        entry.uid = match next.uid {
            Some(uid) => uid,
            None => self.id(&block[108..116])?,
        };
        entry.gid = match next.gid {
            Some(gid) => gid,
            None => self.id(&block[116..124])?,
        };
        entry.mtime = match next.mtime {
            Some(mtime) => mtime,
            None => self.signed(&block[136..148])?,
        };
        let xattr_bytes: usize = next.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.count_metadata(path.len() + link.len() + xattr_bytes)?;
        entry.xattrs = next.xattrs;
        let device = (
            self.number(&block[329..337])? as u32,
            self.number(&block[337..345])? as u32,
        );
        entry.kind = match kind {
            b'0' | b'\0' | b'7' if path.ends_with(b"/") && kind == b'\0' => {
                Kind::Dir { opaque: false }
            }
            b'0' | b'\0' | b'7' => {
                if let Some(()) = self.marker(&key, &entry)? {
                    return self.skip(size);
                }
                self.spill_content(size)?
            }
            b'1' => Kind::Hardlink {
                target: bytes_path(&link).to_path_buf(),
            },
            b'2' => Kind::Symlink { target: link },
            b'3' => Kind::CharDev {
                major: device.0,
                minor: device.1,
            },
            b'4' => Kind::BlockDev {
                major: device.0,
                minor: device.1,
            },
            b'5' => Kind::Dir {
                opaque: self.is_opaque(&key),
            },
            b'6' => Kind::Fifo,
            b'S' => return Err(self.invalid("it has a sparse file, which kiln does not read")),
            _ => return Err(self.invalid("it has an entry of unknown kind")),
        };
        if !matches!(entry.kind, Kind::File { .. }) {
            self.skip(size)?;
        }
        if name_of(&key).starts_with(WHITEOUT) {
            return Err(self.invalid("it has a `.wh.` entry that is not a file"));
        }
        self.tree.insert_key(key, entry)
    }

    /// Puts a whiteout or opaque marker into the tree. None where the entry is an ordinary file.
    fn marker(&mut self, key: &[u8], entry: &Entry) -> Result<Option<()>, LayerError> {
        let name = name_of(key);
        let parent = parent_of(key).unwrap_or_default();
        if name == OPAQUE {
            let dir = match self.tree.get_key(parent) {
                Some(dir) if matches!(dir.kind, Kind::Dir { .. }) => {
                    let mut dir = dir.clone();
                    dir.kind = Kind::Dir { opaque: true };
                    dir
                }
                _ => Entry::new(Kind::Dir { opaque: true }, 0o755).mtime(entry.mtime),
            };
            self.tree.insert_key(parent.to_vec(), dir)?;
            return Ok(Some(()));
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(None);
        };
        // `.wh..wh.plnk` and the like are aufs's own bookkeeping.
        if hidden.starts_with(WHITEOUT) {
            return Ok(Some(()));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.invalid("it has a whiteout without a name"));
        }
        let mut key = parent.to_vec();
        if !key.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(hidden);
        // A whiteout speaks of the layers below: where this layer has the path itself, that stands, and a
        // directory of this layer then hides what was below it.
        let present = self.tree.get_key(&key).map(|present| present.kind.clone());
        match present {
            Some(Kind::Dir { .. }) => {
                if let Some(dir) = self.tree.get_key(&key) {
                    let mut dir = dir.clone();
                    dir.kind = Kind::Dir { opaque: true };
                    self.tree.insert_key(key, dir)?;
                }
            }
            Some(_) => {}
            None => {
                let whiteout = Entry::new(Kind::Whiteout, 0).mtime(entry.mtime);
                self.tree.insert_key(key, whiteout)?;
            }
        }
        Ok(Some(()))
    }

    /// Whether a directory that now comes was said to hide those below, by a marker before it.
    fn is_opaque(&self, key: &[u8]) -> bool {
        matches!(
            self.tree.get_key(key).map(|entry| &entry.kind),
            Some(Kind::Dir { opaque: true } | Kind::Whiteout)
        )
    }

    fn header_path(&self, block: &[u8; BLOCK]) -> Vec<u8> {
        let name = until_nul(&block[0..100]);
        let prefix = until_nul(&block[345..500]);
        // GNU's own format has other fields where ustar has the prefix.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    fn spill_content(&mut self, size: u64) -> Result<Kind, LayerError> {
        let offset = self.spilled;
        self.spilled = offset.saturating_add(size);
        if self.spilled > self.limits.content {
            return Err(LayerError::Limit {
                what: "bytes of content",
                limit: self.limits.content,
            });
        }
        let mut content = (&mut self.stream).take(size);
        let mut buffer = [0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let count = match content.read(&mut buffer) {
                Ok(0) => return Err(self.invalid("it ends within a file")),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerError::Read(error)),
            };
            self.writer
                .write_all(&buffer[..count])
                .map_err(LayerError::Write)?;
            left -= count as u64;
        }
        self.offset += size;
        self.skip_padding(size)?;
        Ok(Kind::File {
            content: Content::Range {
                file: self.spill.clone(),
                offset,
            },
            size,
        })
    }

    /// A record's bytes, and its padding.
    fn record(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > RECORD_MAX {
            return Err(self.invalid("a header record is larger than 8 MiB"));
        }
        let mut bytes = Vec::new();
        (&mut self.stream)
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(LayerError::Read)?;
        if bytes.len() as u64 != size {
            return Err(self.invalid("it ends within a header record"));
        }
        self.offset += size;
        self.skip_padding(size)?;
        Ok(bytes)
    }

    fn skip(&mut self, size: u64) -> Result<(), LayerError> {
        let skipped = io::copy(&mut (&mut self.stream).take(size), &mut io::sink())
            .map_err(LayerError::Read)?;
        if skipped != size {
            return Err(self.invalid("it ends within an entry"));
        }
        self.offset += size;
        self.skip_padding(size)
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), LayerError> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        match padding {
            0 => Ok(()),
            padding => {
                let mut bytes = [0; BLOCK];
                self.stream
                    .read_exact(&mut bytes[..padding as usize])
                    .map_err(LayerError::Read)?;
                self.offset += padding;
                Ok(())
            }
        }
    }

    fn pax(&mut self, record: &[u8], next: &mut Overrides) -> Result<(), LayerError> {
        let mut rest = record;
        while !rest.is_empty() {
            let bad = || self.invalid("a pax record is malformed");
            let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = text_number(&rest[..space]).ok_or_else(bad)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let pair = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = pair.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (name, value) = (&pair[..equals], &pair[equals + 1..]);
            match name {
                b"path" => next.path = Some(value.to_vec()),
                b"linkpath" => next.link = Some(value.to_vec()),
                b"size" => next.size = Some(text_number(value).ok_or_else(bad)?),
                b"uid" => next.uid = Some(text_number(value).ok_or_else(bad)?),
                b"gid" => next.gid = Some(text_number(value).ok_or_else(bad)?),
                b"mtime" => next.mtime = Some(whole_seconds(value).ok_or_else(bad)?),
                name if name.starts_with(b"GNU.sparse.") => {
                    return Err(self.invalid("it has a sparse file, which kiln does not read"));
                }
                name => {
                    if let Some(name) = name.strip_prefix(PAX_XATTR) {
                        next.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    fn count_metadata(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.metadata += bytes as u64;
        if self.metadata > self.limits.metadata {
            return Err(LayerError::Limit {
                what: "bytes of names and attributes",
                limit: self.limits.metadata,
            });
        }
        Ok(())
    }

    fn id(&self, field: &[u8]) -> Result<u32, LayerError> {
        u32::try_from(self.number(field)?).map_err(|_| self.invalid("an owner is out of range"))
    }

    fn number(&self, field: &[u8]) -> Result<u64, LayerError> {
        u64::try_from(self.signed(field)?).map_err(|_| self.invalid("a number is negative"))
    }

    /// Octal text, or GNU's base 256 where the first bit is set.
    fn signed(&self, field: &[u8]) -> Result<i64, LayerError> {
        let bad = || self.invalid("a header has a malformed number");
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let start: i128 = if negative { -1 } else { 0 };
            let first = if negative { field[0] } else { field[0] & 0x7f };
            let value = std::iter::once(&first)
                .chain(&field[1..])
                .fold(start, |value, byte| (value << 8) | i128::from(*byte));
            return i64::try_from(value).map_err(|_| bad());
        }
        let text = until_nul(field).trim_ascii();
        text.iter().try_fold(0i64, |value, byte| match byte {
            b'0'..=b'7' => value
                .checked_mul(8)
                .map(|value| value + i64::from(byte - b'0'))
                .ok_or_else(bad),
            _ => Err(bad()),
        })
    }

    fn invalid(&self, problem: &'static str) -> LayerError {
        LayerError::TarInvalid {
            offset: self.offset,
            problem,
        }
    }
}

fn bytes_path(bytes: &[u8]) -> &Path {
    crate::layer::to_path(bytes)
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text_number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds, rounded down, of a decimal number with or without a fraction.
fn whole_seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let below = whole.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
    Some(seconds - i64::from(below))
}
