//! A tar with an image in it, and from what a person names to the image in the store.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_model::Digest;

use super::layout::Folder;
use super::reference::ArchiveKind;
use super::{ArchiveReference, ImportError, ImportRequest, unpacked_max, whole};
use crate::compression::unpacked;
use crate::content::Reader;
use crate::layer::{Kind, LayerError, Tree};
use crate::store::Store;
use crate::tar::Limits;

/// As Linux follows at most (MAXSYMLINKS).
const LINKS_MAX: usize = 40;
/// Of FAT, the coarsest clock of a file system: a younger file may change without its times telling.
const TICK_NS: i128 = 2_000_000_000;

/// The files of an archive, in an unnamed file of the store's.
pub(super) struct Archive<'a> {
    request: ImportRequest<'a>,
    path: PathBuf,
    tree: Tree,
}

impl<'a> Archive<'a> {
    fn read(store: &Store, path: &Path, request: ImportRequest<'a>) -> Result<Self, ImportError> {
        let io = |source| ImportError::Io {
            place: request.place.to_owned(),
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let there = file.metadata().map_err(io)?;
        if !there.is_file() {
            return Err(ImportError::NotArchive {
                place: request.place.to_owned(),
                path: path.to_owned(),
                what: "an archive",
                problem: "it is no file",
            });
        }
        // As docker's load has it, the archive itself may be compressed.
        let stream = unpacked(file).map_err(io)?;
        let limits = Limits {
            // An image has some hundreds of blobs.
            entries: 100_000,
            metadata: 64 << 20,
            content: unpacked_max(there.len()),
        };
        let tree =
            Tree::from_tar(stream, store.spill()?, limits).map_err(|source| match source {
                LayerError::Write(error) => store.write_error(error).into(),
                source => ImportError::Archive {
                    place: request.place.to_owned(),
                    source,
                },
            })?;
        Ok(Self {
            request,
            path: path.to_owned(),
            tree,
        })
    }

    pub(super) fn place(&self) -> &str {
        self.request.place
    }

    pub(super) fn is_none(&self, what: &'static str, problem: &'static str) -> ImportError {
        ImportError::NotArchive {
            place: self.place().to_owned(),
            path: self.path.clone(),
            what,
            problem,
        }
    }

    /// A file of the archive; docker's older ones have links between their layers.
    pub(super) fn file(&self, name: &str) -> Result<Option<ArchiveFile<'_>>, ImportError> {
        let mut path = PathBuf::new();
        push(&mut path, Path::new(name));
        for _ in 0..LINKS_MAX {
            match self.tree.get(&path).map(|entry| &entry.kind) {
                Some(Kind::File { content, size }) => {
                    return Ok(Some(ArchiveFile {
                        content: content.open().map_err(|source| ImportError::Io {
                            place: self.place().to_owned(),
                            path: self.path.clone(),
                            source,
                        })?,
                        size: *size,
                        at: 0,
                    }));
                }
                Some(Kind::Hardlink { target }) => path.clone_from(target),
                Some(Kind::Symlink { target }) => {
                    let target = Path::new(std::str::from_utf8(target).unwrap_or_default());
                    path.pop();
                    push(&mut path, target);
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// A small file of the archive.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        whole(file, self.place(), || name.to_owned())?
            .map(Some)
            .map_err(|source| ImportError::Io {
                place: self.place().to_owned(),
                path: self.path.clone(),
                source,
            })
    }
}

/// Inside the archive, whatever the link says.
fn push(path: &mut PathBuf, more: &Path) {
    for part in more.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir => path.clear(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// A file of an archive, read from its beginning.
pub(super) struct ArchiveFile<'a> {
    content: Reader<'a>,
    size: u64,
    at: u64,
}

impl Read for ArchiveFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read_within(self.size, buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Store {
    /// Brings the image that `reference` names here, and answers its manifest's digest. An archive that is as it was is not
    /// read again.
    pub fn import_archive(
        &self,
        reference: &ArchiveReference,
        arch: &str,
    ) -> Result<Digest, ImportError> {
        let place = reference.to_string();
        let request = ImportRequest {
            place: &place,
            arch,
        };
        let (path, wanted) = reference.split()?;
        if reference.kind == ArchiveKind::OciLayout {
            let folder = Folder {
                path: &path,
                place: &place,
            };
            return self.import_layout(&folder, request, &wanted);
        }
        let there = std::fs::metadata(&path).map_err(|source| ImportError::Io {
            place: place.clone(),
            path: path.clone(),
            source,
        })?;
        let key = known_by(&path, &there, &format!("{arch} {place} {}", wanted.text()));
        if let Some(digest) = self.imported(&key) {
            return Ok(digest);
        }
        let began = SystemTime::now();
        let archive = Archive::read(self, &path, request)?;
        let digest = match reference.kind {
            ArchiveKind::DockerArchive => self.import_docker(&archive, request, &wanted)?,
            ArchiveKind::OciArchive | ArchiveKind::OciLayout => {
                self.import_layout(&archive, request, &wanted)?
            }
        };
        if is_steady(&there, began) {
            self.cache_put(&key, digest.to_string().as_bytes())?;
        }
        Ok(digest)
    }

    /// What an archive or a registry gave the last time, where all of it is still here.
    pub fn imported(&self, key: &Digest) -> Option<Digest> {
        let record = self.cache_get(key)?;
        let digest: Digest = std::str::from_utf8(&record).ok()?.parse().ok()?;
        let image = self.image(&digest).ok()?;
        let is_whole = image
            .layers
            .iter()
            .all(|layer| self.blob_size(&layer.blob.digest).ok() == Some(layer.blob.size));
        is_whole.then_some(digest)
    }
}

/// What changes with an archive's content.
fn known_by(path: &Path, there: &Metadata, wanted: &str) -> Digest {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stat = [
        i128::from(there.dev()),
        i128::from(there.ino()),
        i128::from(there.size()),
        i128::from(there.mtime()),
        i128::from(there.mtime_nsec()),
        i128::from(there.ctime()),
        i128::from(there.ctime_nsec()),
    ];
    let text = format!("archive\0{}\0{stat:?}\0{wanted}", path.display());
    Digest::of(text.as_bytes())
}

/// A file that was changed just now may be changed again without another time.
fn is_steady(there: &Metadata, began: SystemTime) -> bool {
    let began = began
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0));
    let changed = i128::from(there.ctime()) * 1_000_000_000 + i128::from(there.ctime_nsec());
    changed + TICK_NS < began
}

/// For errors: the names that the images of an archive have.
pub(super) fn names(all: &BTreeMap<String, usize>) -> Vec<String> {
    all.keys().cloned().collect()
}
