//! A `.deb`: an `ar` archive of a control and a data tar (deb(5)).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use liblzma::read::XzDecoder;
use liblzma::stream::{IGNORE_CHECK, Stream};

use crate::debian::upper_dir::{UpperDir, set_time};

/// Nothing in a control archive is larger.
const CONTROL_LIMIT: u64 = 16 << 20;

const AR: &[u8] = b"!<arch>\n";
/// A third faster than the fastest of the usual levels, both ways, for an eighth more room.
const REPACK_LEVEL: i32 = -1;
/// What is written of a file at a time.
const CHUNK: u64 = 256 << 10;

pub(crate) struct Deb {
    bytes: Vec<u8>,
}

/// The files of the control archive, by name.
pub(crate) type Control = BTreeMap<String, Vec<u8>>;

/// What unpacking wrote: every path as dpkg lists it, and the folders whose metadata is still to be set.
#[derive(Default)]
pub(crate) struct Unpacked {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) folders: Vec<Folder>,
}

/// As a package has it.
pub(crate) struct Folder {
    /// As listed.
    pub(crate) path: PathBuf,
    /// Where it really is.
    pub(crate) place: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
}

/// Where a path of a package goes: itself, elsewhere (diverted), or nowhere.
pub(crate) type Where<'a> = dyn Fn(&Path) -> Option<PathBuf> + Sync + 'a;

impl Deb {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The member whose name begins with `prefix`, unpacked as its ending says.
    fn member(&self, prefix: &str) -> Result<Box<dyn Read + '_>, String> {
        let mut rest = self.bytes.strip_prefix(AR).ok_or("it is no ar archive")?;
        while rest.len() >= 60 {
            let (header, tail) = rest.split_at(60);
            let text = |range: std::ops::Range<usize>| {
                std::str::from_utf8(&header[range])
                    .map(str::trim_end)
                    .map_err(|_| "its ar header is damaged")
            };
            let name = text(0..16)?.trim_end_matches('/');
            let size: usize = text(48..58)?
                .parse()
                .map_err(|_| "its ar header is damaged")?;
            let body = tail.get(..size).ok_or("it is cut off")?;
            if let Some(ending) = name.strip_prefix(prefix) {
                return match ending {
                    ".xz" => {
                        // The whole package is known by its digest: its own sums say nothing more.
                        let stream = Stream::new_stream_decoder(u64::MAX, IGNORE_CHECK)
                            .map_err(|error| error.to_string())?;
                        Ok(Box::new(XzDecoder::new_stream(body, stream)))
                    }
                    ".gz" => Ok(Box::new(flate2::read::GzDecoder::new(body))),
                    ".zst" => zstd::stream::read::Decoder::new(body)
                        .map(|decoder| Box::new(decoder) as Box<dyn Read>)
                        .map_err(|error| error.to_string()),
                    "" => Ok(Box::new(body)),
                    other => Err(format!("kiln can't unpack `{prefix}{other}`")),
                };
            }
            rest = tail.get(size + size % 2..).unwrap_or_default();
        }
        Err(format!("it has no {prefix}"))
    }

    /// A package of one member, unpacked; `None` where it has more than `limit` bytes, or where `stop` says that nobody needs it.
    pub(crate) fn plain(
        &self,
        member: &str,
        limit: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, String> {
        let mut plain = archive_head(member, 0);
        let head = plain.len();
        let mut reader = self.member(member)?;
        loop {
            let read = (&mut reader).take(1 << 20).read_to_end(&mut plain);
            if read.map_err(|error| error.to_string())? == 0 {
                break;
            }
            if (plain.len() - head) as u64 > limit || stop() {
                return Ok(None);
            }
        }
        let whole = archive_head(member, plain.len() - head);
        plain[..head].copy_from_slice(&whole);
        Ok(Some(Self::new(plain)))
    }

    /// A plain package as an archive to be kept, packed so that unpacking it takes next to no time.
    pub(crate) fn packed(&self, member: &str) -> Result<Vec<u8>, String> {
        let tar = &self.bytes[archive_head(member, 0).len()..];
        let body = zstd::bulk::compress(tar, REPACK_LEVEL).map_err(|error| error.to_string())?;
        let mut packed = archive_head(&format!("{member}.zst"), body.len());
        packed.extend_from_slice(&body);
        Ok(packed)
    }

    /// In bytes, as it is.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn control(&self) -> Result<Control, String> {
        let mut archive = tar::Archive::new(self.member("control.tar")?.take(CONTROL_LIMIT));
        let mut files = BTreeMap::new();
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let mut entry = entry.map_err(|error| error.to_string())?;
            let path = entry
                .path()
                .map_err(|error| error.to_string())?
                .into_owned();
            if let (true, Some(name)) = (entry.header().entry_type().is_file(), path.file_name()) {
                let name = name.to_string_lossy().into_owned();
                let mut body = Vec::new();
                entry
                    .read_to_end(&mut body)
                    .map_err(|error| error.to_string())?;
                files.insert(name, body);
            }
        }
        Ok(files)
    }

    /// One regular file of the data, at most `limit` bytes; `None` where it has none.
    pub(crate) fn file(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, String> {
        let mut archive = tar::Archive::new(self.member("data.tar")?);
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            let there = clean(&entry.path().map_err(|error| error.to_string())?)?;
            if there == path && entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry
                    .take(limit)
                    .read_to_end(&mut bytes)
                    .map_err(|error| error.to_string())?;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Unpacks the data. Folders get their owners and times later.
    pub(crate) fn unpack(
        &self,
        upper_dir: &UpperDir,
        place: &Where<'_>,
    ) -> Result<Unpacked, UnpackError> {
        let mut done = Unpacked::default();
        let mut archive = tar::Archive::new(self.member("data.tar")?);
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let mut entry = entry.map_err(|error| error.to_string())?;
            let listed = clean(&entry.path().map_err(|error| error.to_string())?)?;
            if listed.as_os_str().is_empty() {
                done.paths.push(listed);
                continue;
            }
            let Some(path) = place(&listed) else {
                continue;
            };
            done.paths.push(listed.clone());
            write(
                &mut entry,
                upper_dir,
                &listed,
                &merged(&path),
                place,
                &mut done,
            )
            .map_err(|error| UnpackError::of(&upper_dir.upper().join(path), error))?;
        }
        Ok(done)
    }
}

/// What an archive has before the bytes of its only member. Its length is always the same.
fn archive_head(name: &str, size: usize) -> Vec<u8> {
    let header = format!(
        "{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n",
        0, 0, 0, 100_644
    );
    [AR, header.as_bytes()].concat()
}

/// Why a package is not unpacked.
pub(crate) enum UnpackError {
    /// The package's own fault.
    Damaged(String),
    /// This machine's: a full disk, say.
    System { path: PathBuf, source: io::Error },
}

impl From<String> for UnpackError {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl UnpackError {
    /// The package is read from memory: what the kernel says is about where it is unpacked.
    fn of(path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(_) => Self::System {
                path: path.to_owned(),
                source,
            },
            None => Self::Damaged(format!("{}: {source}", path.display())),
        }
    }
}

fn write(
    entry: &mut tar::Entry<'_, impl Read>,
    upper_dir: &UpperDir,
    listed: &Path,
    path: &Path,
    place: &Where<'_>,
    done: &mut Unpacked,
) -> io::Result<()> {
    let header = entry.header().clone();
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let (uid, gid, mode) = (
        number(header.uid()?)?,
        number(header.gid()?)?,
        header.mode()? & 0o7777,
    );
    let mtime = i64::try_from(header.mtime()?).map_err(io::Error::other)?;
    let kind = header.entry_type();
    if kind.is_dir() {
        done.folders.push(Folder {
            path: listed.to_owned(),
            place: upper_dir.make_folder(path)?,
            uid,
            gid,
            mode,
            mtime,
        });
        return Ok(());
    }
    let there = upper_dir.place(path)?;
    if !upper_dir.clear(&there)? {
        // As dpkg does: a link does not replace a folder.
        return if kind.is_symlink() {
            Ok(())
        } else {
            Err(io::Error::other("it is a folder in the image already"))
        };
    }
    let target = upper_dir.upper().join(there);
    if kind.is_symlink() {
        let to = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
        symlink(to, &target)?;
        std::os::unix::fs::lchown(&target, Some(uid), Some(gid))?;
    } else if kind.is_hard_link() {
        let to = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
        let to = clean(&to).map_err(io::Error::other)?;
        let to = place(&to)
            .ok_or_else(|| io::Error::other("it is a hard link to a file that is not unpacked"))?;
        fs::hard_link(
            upper_dir.upper().join(upper_dir.place(&merged(&to))?),
            &target,
        )?;
        return Ok(());
    } else if kind.is_file() {
        let mut file = File::options().write(true).create_new(true).open(&target)?;
        let chunk = usize::try_from(header.size()?.clamp(1, CHUNK)).map_err(io::Error::other)?;
        io::copy(&mut BufReader::with_capacity(chunk, entry), &mut file)?;
        // The owner first: changing it takes set-id bits away.
        chown(&target, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    } else {
        return Err(io::Error::other("it is neither file, folder nor link"));
    }
    set_time(&target, mtime)
}

/// Relative, without `.`; a path that leads out is refused.
fn clean(path: &Path) -> Result<PathBuf, String> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => {
                return Err(format!(
                    "it has the path {}, which leads out",
                    path.display()
                ));
            }
        }
    }
    Ok(out)
}

/// Folders that are links below `/usr` in every Debian since bookworm (usrmerge).
pub(crate) const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

pub(crate) fn merged(path: &Path) -> PathBuf {
    match path.components().next() {
        Some(Component::Normal(first)) if MERGED.iter().any(|name| first == *name) => {
            Path::new("usr").join(path)
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An archive with one small file.
    pub(crate) fn with_control() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        tar.append_data(&mut header, "./control", &b"text"[..])
            .unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn what_is_packed_again_holds_the_same() {
        let tar = with_control();
        let header = format!("{:<48}{:<10}`\n", "control.tar", tar.len());
        let deb = Deb::new([AR, header.as_bytes(), &tar].concat());
        let size = tar.len() as u64;
        let plain = |member, limit, stop: bool| deb.plain(member, limit, &|| stop);
        let whole = plain("control.tar", size, false).unwrap().unwrap();
        let packed = whole.packed("control.tar").unwrap();
        assert!(packed.len() < tar.len());
        assert_eq!(Deb::new(packed).control().unwrap(), deb.control().unwrap());
        assert_eq!(whole.control().unwrap(), deb.control().unwrap());
        assert!(plain("control.tar", size - 1, false).unwrap().is_none());
        assert!(plain("control.tar", size, true).unwrap().is_none());
        assert!(plain("data.tar", size, false).is_err());
    }

    #[test]
    fn a_damaged_package_is_an_error_and_a_path_that_leads_out_too() {
        for bytes in [
            &b""[..],
            b"!<arch>\n",
            b"!<arch>\ndata.tar.xz     0           0     0     100644  999999    `\n",
        ] {
            assert!(Deb::new(bytes.to_vec()).control().is_err());
        }
        assert!(clean(Path::new("./../etc/passwd")).is_err());
        assert_eq!(
            clean(Path::new("./usr/./bin/x")).unwrap(),
            Path::new("usr/bin/x")
        );
        assert_eq!(merged(Path::new("bin/sh")), Path::new("usr/bin/sh"));
        assert_eq!(merged(Path::new("binary")), Path::new("binary"));
    }
}
