//! ADD of an archive: its files, as docker's own unpacking puts them below a folder of the image.
//!
//! The folder is the root for every link, in the archive and in the image, so that nothing of an archive leaves it. Modes and
//! links are the archive's, and owners unless ADD names one; what the image has there is replaced, except that folders are joined.

use std::cell::Cell;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use kiln_oci::{Content, Entry, Kind, unpacked_max};
use tar::EntryType;

use super::place::Placing;

/// As Linux follows at most (MAXSYMLINKS).
const LINKS_MAX: usize = 40;
const ENTRIES_MAX: usize = 4_000_000;
/// Of what an entry's own headers say: a long name, a long link, and pax records with attributes of 64 KiB each.
const RECORDS_MAX: u64 = 16 << 20;
/// Of names, link targets and attributes, which are all in memory.
const METADATA_MAX: usize = 1 << 30;
/// `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// An extended attribute's name in a pax record.
const PAX_XATTR: &str = "SCHILY.xattr.";

#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("it can't be read: {0}")]
    Read(#[source] io::Error),
    #[error("it can't be unpacked")]
    Write(#[source] io::Error),
    #[error("`{path}` {problem}")]
    Entry { path: String, problem: String },
    #[error("it has more than {ENTRIES_MAX} entries")]
    Entries,
    #[error("its names and attributes are longer than {METADATA_MAX} bytes together")]
    Metadata,
    #[error(
        "it has {size} bytes and unpacks to more than {limit}: it is refused, as one that would fill the disk"
    )]
    Bomb { size: u64, limit: u64 },
    #[error(transparent)]
    Layer(#[from] kiln_oci::LayerError),
}

/// The tar stream of a file, by what it begins with; none where it is no tar, compressed or not.
pub(super) fn tar_stream(path: &Path) -> io::Result<Option<Box<dyn Read>>> {
    let Some(mut stream) = decompressed(path)? else {
        return Ok(None);
    };
    let mut block = [0; 512];
    let mut filled = 0;
    while filled < block.len() {
        match stream.read(&mut block[filled..]) {
            Ok(0) => return Ok(None),
            Ok(count) => filled += count,
            Err(error) if wants_memory(&error) => return Err(error),
            // What is broken before the first header is no archive, but a file that looks like one.
            Err(_) => return Ok(None),
        }
    }
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    let said = std::str::from_utf8(&block[148..156])
        .ok()
        .map(|text| text.trim_matches(['\0', ' ']))
        .and_then(|text| u32::from_str_radix(text, 8).ok());
    Ok(
        (said == Some(sum))
            .then(|| Box::new(io::Cursor::new(block).chain(stream)) as Box<dyn Read>),
    )
}

fn wants_memory(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(liblzma::stream::Error::MemLimit))
}

fn decompressed(path: &Path) -> io::Result<Option<Box<dyn Read>>> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(6).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::with_capacity(256 << 10, file);
    Ok(Some(match &start[..] {
        [] => return Ok(None),
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let flags = liblzma::stream::CONCATENATED;
            let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(file, decoder))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    }))
}

/// Puts what `stream` has below `to`, a folder of the image. `size` is that of the archive, `spill` an empty file.
pub(super) fn unpack(
    placing: &mut Placing<'_>,
    stream: Box<dyn Read>,
    size: u64,
    to: &Path,
    spill: File,
) -> Result<(), UnpackError> {
    let limit = unpacked_max(size);
    within(placing, stream, size, to, spill, limit)
}

fn within(
    placing: &mut Placing<'_>,
    stream: Box<dyn Read>,
    size: u64,
    to: &Path,
    spill: File,
    limit: u64,
) -> Result<(), UnpackError> {
    // One more than may be there: who comes to its end was stopped.
    let room = Rc::new(Cell::new(limit.saturating_add(1)));
    let records = Rc::new(Cell::new(RECORDS_MAX));
    let mut archive = tar::Archive::new(Metered {
        stream,
        room: room.clone(),
        records: records.clone(),
    });
    let mut unpacking = Unpacking {
        placing,
        to,
        spill: Arc::new(spill),
        spilled: 0,
        metadata: 0,
    };
    let bomb = || UnpackError::Bomb { size, limit };
    let read = |error| match room.get() {
        0 => bomb(),
        _ => UnpackError::Read(error),
    };
    let mut count = 0;
    let mut entries = archive.entries().map_err(UnpackError::Read)?;
    loop {
        records.set(RECORDS_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(read)?;
        records.set(u64::MAX);
        count += 1;
        if count > ENTRIES_MAX {
            return Err(UnpackError::Entries);
        }
        // A sparse file is larger than what there is of it.
        let end = entry.raw_file_position().max(unpacking.spilled);
        if end.saturating_add(entry.size()) > limit {
            return Err(bomb());
        }
        unpacking.entry(&mut entry)?;
        // Of what has no content: so that the next entry's records come next.
        io::copy(&mut entry, &mut io::sink()).map_err(read)?;
    }
    if room.get() == 0 { Err(bomb()) } else { Ok(()) }
}

/// The archive's stream, of which no more is given than there is room for: of all of it, and of the records before an entry, which
/// the reader of archives has in memory, however long they are.
struct Metered {
    stream: Box<dyn Read>,
    room: Rc<Cell<u64>>,
    records: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (room, records) = (self.room.get(), self.records.get());
        if records == 0 && !buffer.is_empty() {
            let problem = "an entry has records of more than any name and attributes";
            return Err(io::Error::other(problem));
        }
        let most = usize::try_from(room.min(records)).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        let count = self.stream.read(&mut buffer[..length])?;
        self.room.set(room - count as u64);
        self.records.set(records - count as u64);
        Ok(count)
    }
}

struct Unpacking<'a, 'p> {
    placing: &'a mut Placing<'p>,
    to: &'a Path,
    spill: Arc<File>,
    spilled: u64,
    metadata: usize,
}

impl Unpacking<'_, '_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let written = entry.path_bytes().into_owned();
        let wrong = |problem: &str| UnpackError::Entry {
            path: String::from_utf8_lossy(&written).into_owned(),
            problem: problem.to_owned(),
        };
        let name = Path::new(std::ffi::OsStr::from_bytes(&written));
        let name = inside(name).ok_or_else(|| wrong("leads out of the archive"))?;
        let Some(last) = name.file_name() else {
            // The folder itself is the image's.
            return Ok(());
        };
        if last.as_bytes().starts_with(b".wh.") {
            return Err(wrong(
                "begins with `.wh.`, which a layer keeps for deleted files",
            ));
        }
        let mut xattrs = std::collections::BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Read)? {
            for extension in extensions {
                let extension = extension.map_err(UnpackError::Read)?;
                let key = extension.key().unwrap_or_default();
                if key.starts_with("GNU.sparse.") {
                    return Err(wrong(
                        "is a sparse file in pax form, which kiln does not read",
                    ));
                }
                if let Some(name) = key.strip_prefix(PAX_XATTR) {
                    xattrs.insert(name.as_bytes().to_vec(), extension.value_bytes().to_vec());
                }
            }
        }
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let attributes: usize = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.metadata += written.len() + link.as_ref().map_or(0, Vec::len) + attributes;
        if self.metadata > METADATA_MAX {
            return Err(UnpackError::Metadata);
        }
        let parent = self.real(name.parent().unwrap_or(Path::new("")), &wrong)?;
        self.folders(&parent)?;
        let place = parent.join(last);
        let header = entry.header();
        let number = |field: io::Result<u64>| {
            field
                .ok()
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| wrong("has a number that is out of range"))
        };
        let mode = header.mode().map_err(UnpackError::Read)? & 0o7777;
        let (uid, gid) = (number(header.uid())?, number(header.gid())?);
        let mtime = header.mtime().map_err(UnpackError::Read)?;
        // An empty field is none.
        let device = || {
            let header = entry.header();
            let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or_default();
            (number(header.device_major()), number(header.device_minor()))
        };
        let kind = match entry.header().entry_type() {
            EntryType::Directory => Kind::Dir { opaque: false },
            EntryType::Regular if written.ends_with(b"/") => Kind::Dir { opaque: false },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.content(entry)?
            }
            EntryType::Symlink => Kind::Symlink {
                target: link.ok_or_else(|| wrong("is a link to nothing"))?,
            },
            EntryType::Link => {
                let link = link.ok_or_else(|| wrong("is a link to nothing"))?;
                let target = Path::new(std::ffi::OsStr::from_bytes(&link));
                let target =
                    inside(target).ok_or_else(|| wrong("is a hard link out of the archive"))?;
                return self.hard_link(&place, &target, (mode, uid, gid, mtime), &wrong);
            }
            EntryType::Char => {
                let (major, minor) = device();
                if (major, minor) == (0, 0) {
                    return Err(wrong("is the device that a layer means deleted files by"));
                }
                Kind::CharDev { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device();
                Kind::BlockDev { major, minor }
            }
            EntryType::Fifo => Kind::Fifo,
            // A comment of git's, and the like.
            EntryType::XGlobalHeader => return Ok(()),
            _ => return Err(wrong("is of a kind that kiln does not know")),
        };
        let mode = match kind {
            // Its own is never asked.
            Kind::Symlink { .. } => 0o777,
            _ => mode,
        };
        let (uid, gid) = self.placing.owner.unwrap_or((uid, gid));
        let mut made = Entry::new(kind, mode)
            .owner(uid, gid)
            .mtime(i64::try_from(mtime).unwrap_or(i64::MAX));
        made.xattrs = xattrs;
        self.put(&place, made)
    }

    /// A folder in place of a folder joins it.
    fn put(&mut self, place: &Path, entry: Entry) -> Result<(), UnpackError> {
        Ok(self.placing.tree.insert(place, entry)?)
    }

    fn content<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Kind, UnpackError> {
        let offset = self.spilled;
        let mut out = &*self.spill;
        let mut buffer = vec![0; 64 << 10];
        loop {
            // The archive's failure and the disk's are two errors, so no `io::copy`.
            let count = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Read(error)),
            };
            out.write_all(&buffer[..count])
                .map_err(UnpackError::Write)?;
            self.spilled += count as u64;
        }
        let size = self.spilled - offset;
        if size != entry.size() {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Kind::File {
            content: Content::Range {
                file: self.spill.clone(),
                offset,
            },
            size,
        })
    }

    /// A second name, of a file of the archive or of one that the image has: that one is then in the layer too.
    fn hard_link(
        &mut self,
        place: &Path,
        target: &Path,
        (mode, uid, gid, mtime): (u32, u32, u32, u64),
        wrong: &dyn Fn(&str) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let last = target
            .file_name()
            .ok_or_else(|| wrong("is a hard link to a folder"))?;
        let parent = self.real(target.parent().unwrap_or(Path::new("")), wrong)?;
        let target = parent.join(last);
        if target == place {
            return Ok(());
        }
        let known = self.placing.tree.get(&target).map(|entry| &entry.kind);
        match known {
            Some(Kind::Dir { .. }) => return Err(wrong("is a hard link to a folder")),
            Some(_) => {}
            None => {
                let there = self
                    .in_view(&target)
                    .ok_or_else(|| wrong("is a hard link to what is not there"))?;
                if !there.is_file() {
                    return Err(wrong("is a hard link to what is no file in the image"));
                }
                let path = self.placing.view.join(&target);
                let kind = Kind::File {
                    content: Content::Path(path),
                    size: there.size(),
                };
                let entry = Entry::new(kind, there.mode() & 0o7777)
                    .owner(there.uid(), there.gid())
                    .mtime(there.mtime());
                self.folders(&parent)?;
                self.put(&target, entry)?;
            }
        }
        // All names have the mode, owner and time of the last one, as where it is unpacked by setting them.
        let mut file = target.clone();
        while let Some(Kind::Hardlink { target }) = self.kind(&file) {
            file = target.clone();
        }
        let owner = self.placing.owner.unwrap_or((uid, gid));
        if let Some(entry) = self.placing.tree.get_mut(&file)
            && !matches!(entry.kind, Kind::Symlink { .. })
        {
            entry.mode = mode;
            (entry.uid, entry.gid) = owner;
            entry.mtime = i64::try_from(mtime).unwrap_or(i64::MAX);
        }
        self.put(place, Entry::new(Kind::Hardlink { target }, 0))
    }

    fn kind(&self, path: &Path) -> Option<&Kind> {
        self.placing.tree.get(path).map(|entry| &entry.kind)
    }

    /// What the image has at a path of it, where nothing that was unpacked is in the way. No link of it is followed: the view is
    /// a folder of the host's.
    fn in_view(&self, path: &Path) -> Option<Metadata> {
        let mut above = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            above.push(part);
            let here = self.placing.tree.get(&above);
            if here.is_some_and(|entry| !matches!(entry.kind, Kind::Dir { .. })) {
                return None;
            }
            if !fs::symlink_metadata(self.placing.view.join(&above)).is_ok_and(|at| at.is_dir()) {
                return None;
            }
        }
        fs::symlink_metadata(self.placing.view.join(path)).ok()
    }

    /// Where a folder of the archive is in the image: links lead from the folder that is unpacked to, as from a root.
    fn real(
        &self,
        path: &Path,
        wrong: &dyn Fn(&str) -> UnpackError,
    ) -> Result<PathBuf, UnpackError> {
        let mut left: Vec<PathBuf> = Vec::new();
        let push = |left: &mut Vec<PathBuf>, path: &Path| {
            left.extend(path.components().rev().filter_map(|part| match part {
                Component::Normal(name) => Some(PathBuf::from(name)),
                Component::ParentDir => Some("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            }));
        };
        push(&mut left, path);
        let mut real = PathBuf::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == Path::new("..") {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let at = self.to.join(&next);
            let target = match self.placing.tree.get(&at).map(|entry| &entry.kind) {
                Some(Kind::Symlink { target }) => {
                    Some(PathBuf::from(std::ffi::OsStr::from_bytes(target)))
                }
                Some(_) => None,
                None => match self.in_view(&at) {
                    Some(there) if there.is_symlink() => Some(
                        fs::read_link(self.placing.view.join(&at)).map_err(UnpackError::Read)?,
                    ),
                    _ => None,
                },
            };
            let Some(target) = target else {
                real = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(wrong("is below too many links"));
            }
            if target.is_absolute() {
                real = PathBuf::new();
            }
            push(&mut left, &target);
        }
        Ok(self.to.join(real))
    }

    /// `path` and what is above it: as the image has them, or new.
    fn folders(&mut self, path: &Path) -> Result<(), UnpackError> {
        let mut above = PathBuf::new();
        for part in path.components() {
            above.push(part);
            let known = self.placing.tree.get(&above);
            if known.is_some_and(|entry| matches!(entry.kind, Kind::Dir { .. })) {
                continue;
            }
            let entry = match self.in_view(&above).filter(|_| known.is_none()) {
                Some(there) if there.is_dir() => Entry::dir(there.mode() & 0o7777)
                    .owner(there.uid(), there.gid())
                    .mtime(there.mtime()),
                _ => Entry::dir(0o755).mtime(self.placing.date),
            };
            self.put(&above, entry)?;
        }
        Ok(())
    }
}

/// A path of an archive: from its root, whatever it begins with. None where it leads out.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => clean.pop().then_some(())?,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests;
