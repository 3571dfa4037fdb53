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
                return self.hard_link(&place, &target, &wrong);
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
        self.put(place, Entry::new(Kind::Hardlink { target }, 0))
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
mod tests {
    use kiln_oci::Tree;

    use super::*;

    fn unpacked(view: &Path, to: &str, blocks: &[Vec<u8>]) -> Result<Tree, UnpackError> {
        unpacked_within(view, to, blocks, 1 << 30)
    }

    fn unpacked_within(
        view: &Path,
        to: &str,
        blocks: &[Vec<u8>],
        limit: u64,
    ) -> Result<Tree, UnpackError> {
        let mut placing = Placing {
            view,
            owner: None,
            chmod: None,
            date: 1000,
            tree: Tree::new(),
            replaced: Vec::new(),
        };
        let mut bytes = blocks.concat();
        bytes.extend([0; 1024]);
        let size = bytes.len() as u64;
        let stream = Box::new(io::Cursor::new(bytes));
        let spill = tempfile::tempfile().unwrap();
        within(&mut placing, stream, size, Path::new(to), spill, limit)?;
        Ok(placing.tree)
    }

    fn block(name: &str, kind: EntryType, link: &str, text: &str) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(text.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(5);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.iter()
            .skip(1)
            .map(|(path, entry)| match &entry.kind {
                Kind::Dir { .. } => format!("{}/", path.display()),
                Kind::Hardlink { target } => format!("{}={}", path.display(), target.display()),
                Kind::Symlink { .. } => format!("{}@", path.display()),
                _ => path.display().to_string(),
            })
            .collect()
    }

    #[test]
    fn links_of_image_and_archive_lead_from_the_folder_that_is_unpacked_to() {
        let view = tempfile::tempdir().unwrap();
        let view = view.path();
        fs::create_dir_all(view.join("opt/usr/bin")).unwrap();
        fs::write(view.join("opt/usr/bin/old"), "old").unwrap();
        std::os::unix::fs::symlink("/usr/bin", view.join("opt/bin")).unwrap();
        let file = |name: &str| block(name, EntryType::Regular, "", "text");
        for (blocks, expected) in [
            // Through the image's link, whose root is the folder.
            (
                vec![file("bin/sh")],
                &["opt/", "opt/usr/", "opt/usr/bin/", "opt/usr/bin/sh"][..],
            ),
            // A folder of the archive replaces the link.
            (
                vec![block("bin/", EntryType::Directory, "", ""), file("bin/sh")],
                &["opt/", "opt/bin/", "opt/bin/sh"],
            ),
            // A link of the archive that seems to lead out.
            (
                vec![
                    block("out", EntryType::Symlink, "../../../../etc", ""),
                    file("out/passwd"),
                ],
                &["opt/", "opt/etc/", "opt/etc/passwd", "opt/out@"],
            ),
            (vec![file("/abs/./x")], &["opt/", "opt/abs/", "opt/abs/x"]),
            (
                vec![file("a"), block("b", EntryType::Link, "a", "")],
                &["opt/", "opt/a", "opt/b=opt/a"],
            ),
            // Of a file of the image: both are in the layer.
            (
                vec![block("b", EntryType::Link, "usr/bin/old", "")],
                &[
                    "opt/",
                    "opt/b=opt/usr/bin/old",
                    "opt/usr/",
                    "opt/usr/bin/",
                    "opt/usr/bin/old",
                ],
            ),
            (
                vec![file("x/y"), block("x", EntryType::Symlink, "z", "")],
                &["opt/", "opt/x@"],
            ),
        ] {
            let tree = unpacked(view, "opt", &blocks).unwrap();
            assert_eq!(paths(&tree), expected);
        }
    }

    #[test]
    fn what_would_leave_the_folder_is_refused() {
        let view = tempfile::tempdir().unwrap();
        let link = |name: &str, to: &str| block(name, EntryType::Link, to, "");
        for (blocks, said) in [
            (
                vec![block("../x", EntryType::Regular, "", "")],
                "`../x` leads out of the archive",
            ),
            (
                vec![block("a/../../x", EntryType::Regular, "", "")],
                "leads out of the archive",
            ),
            (
                vec![link("a", "../../etc/shadow")],
                "hard link out of the archive",
            ),
            (vec![link("a", "/etc/shadow")], "what is not there"),
            (
                vec![block(".wh.x", EntryType::Regular, "", "")],
                "begins with `.wh.`",
            ),
            (
                vec![
                    block("l", EntryType::Symlink, "l", ""),
                    block("l/x", EntryType::Regular, "", ""),
                ],
                "too many links",
            ),
            (vec![block("n", EntryType::Char, "", "")], "deleted files"),
        ] {
            let error = unpacked(view.path(), "opt", &blocks).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn what_is_longer_than_its_limit_is_refused_wherever_that_ends() {
        let view = tempfile::tempdir().unwrap();
        let blocks: Vec<_> = ["a", "b", "c"]
            .map(|name| block(name, EntryType::Regular, "", "text"))
            .to_vec();
        let within = |limit| unpacked_within(view.path(), "", &blocks, limit);
        assert_eq!(within(3 * 1024 + 1024).unwrap().iter().count(), 4);
        // At an entry's end, within its content, and within the header of the next.
        for limit in [
            2 * 1024,
            2 * 1024 - 1,
            2 * 1024 - 510,
            2 * 1024 + 100,
            3 * 1024,
        ] {
            let error = within(limit).unwrap_err();
            assert!(
                matches!(error, UnpackError::Bomb { .. }),
                "{limit}: {error}"
            );
        }
    }

    #[test]
    fn records_of_an_entry_have_a_length() {
        let view = tempfile::tempdir().unwrap();
        let long = |kind, length: usize| {
            let mut name = block("././@LongLink", kind, "", &"x".repeat(length));
            name.extend(block("a", EntryType::Regular, "", "text"));
            name
        };
        // A folder's content is nobody's, and takes nothing of what the next entry may have.
        let folder = block(
            "d/",
            EntryType::Directory,
            "",
            &"y".repeat(RECORDS_MAX as usize),
        );
        let tree = unpacked(view.path(), "", &[folder, long(EntryType::GNULongName, 5)]).unwrap();
        assert_eq!(paths(&tree), ["d/", "xxxxx"]);
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
        ] {
            let error = unpacked(view.path(), "", &[long(kind, RECORDS_MAX as usize)]).unwrap_err();
            assert!(error.to_string().contains("records"), "{kind:?}: {error}");
        }
    }

    #[test]
    fn what_takes_too_much_memory_to_unpack_is_no_plain_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.xz");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&[0; 4096]).unwrap();
        let mut bytes = xz.finish().unwrap();
        // The block's header, whose filter is LZMA2 with a dictionary of 4 GiB (the xz file format, 3.1 and 5.3.1).
        let end = 12 + (usize::from(bytes[12]) + 1) * 4;
        let filter = bytes[12..end]
            .windows(2)
            .position(|two| two == [0x21, 1])
            .unwrap();
        bytes[12 + filter + 2] = 40;
        let mut sum = flate2::Crc::new();
        sum.update(&bytes[12..end - 4]);
        bytes[end - 4..end].copy_from_slice(&sum.sum().to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let error = tar_stream(&path).err().unwrap();
        assert!(wants_memory(&error), "{error}");
    }

    #[test]
    fn an_archive_is_known_by_its_first_header() {
        let folder = tempfile::tempdir().unwrap();
        let tar = [block("a", EntryType::Regular, "", "text"), vec![0; 1024]].concat();
        let gzip = |bytes: &[u8]| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).unwrap();
            out.finish().unwrap()
        };
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&tar).unwrap();
        for (name, bytes, is_archive) in [
            ("tar", tar.clone(), true),
            ("gzip", gzip(&tar), true),
            ("bzip2", bzip2.finish().unwrap(), true),
            ("xz", xz.finish().unwrap(), true),
            ("zstd", zstd::encode_all(tar.as_slice(), 1).unwrap(), true),
            ("gzip of a text", gzip(&[b'x'; 2000]), false),
            ("text", vec![b'x'; 2000], false),
            ("cut", gzip(&tar)[..30].to_vec(), false),
            ("empty", Vec::new(), false),
            ("zeros", vec![0; 1024], false),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let stream = tar_stream(&path).unwrap();
            assert_eq!(stream.is_some(), is_archive, "{name}");
            if let Some(mut stream) = stream {
                let mut whole = Vec::new();
                stream.read_to_end(&mut whole).unwrap();
                assert_eq!(whole, tar, "{name}");
            }
        }
    }
}
