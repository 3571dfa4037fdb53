//! An OCI layout (OCI image specification 1.1, "Image Layout"): a folder, or an archive of one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_model::Digest;

use super::archive::Archive;
use super::reference::Wanted;
use super::{
    BlobKind, BlobSource, ImportError, ImportRequest, ImportRoot, Index, IndexEntry, for_platform,
    whole,
};
use crate::image::{MEDIA_DOCKER_LIST, MEDIA_INDEX, REF_NAME};
use crate::store::Store;

pub(super) struct Folder<'a> {
    pub(super) path: &'a Path,
    pub(super) place: &'a str,
}

/// Either form of a layout.
pub(super) trait Layout: BlobSource {
    fn index(&self) -> Result<Vec<u8>, ImportError>;
}

impl BlobSource for Folder<'_> {
    fn open(
        &self,
        digest: &Digest,
        _: Option<u64>,
        _: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError> {
        let path = self.path.join("blobs/sha256").join(digest.hex());
        match open(&path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ImportError::Missing {
                place: self.place.to_owned(),
                what: digest.to_string(),
            }),
            Err(source) => Err(self.io(path)(source)),
        }
    }
}

/// A named pipe would otherwise be waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

impl Folder<'_> {
    fn io(&self, path: PathBuf) -> impl FnOnce(io::Error) -> ImportError {
        let place = self.place.to_owned();
        move |source| ImportError::Io {
            place,
            path,
            source,
        }
    }
}

impl Layout for Folder<'_> {
    fn index(&self) -> Result<Vec<u8>, ImportError> {
        let path = self.path.join("index.json");
        match open(&path) {
            Ok(file) => whole(file, self.place, || "index.json".to_owned())?.map_err(self.io(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_dir() => {
                Err(ImportError::NotArchive {
                    place: self.place.to_owned(),
                    path: self.path.to_owned(),
                    what: "an OCI layout",
                    problem: "it has no index.json",
                })
            }
            Err(source) => Err(self.io(self.path.to_owned())(source)),
        }
    }
}

impl BlobSource for Archive<'_> {
    fn open(
        &self,
        digest: &Digest,
        _: Option<u64>,
        _: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError> {
        let name = format!("blobs/sha256/{}", digest.hex());
        match self.file(&name)? {
            Some(file) => Ok(Box::new(file)),
            None => Err(ImportError::Missing {
                place: self.place().to_owned(),
                what: digest.to_string(),
            }),
        }
    }
}

impl Layout for Archive<'_> {
    fn index(&self) -> Result<Vec<u8>, ImportError> {
        self.document("index.json")?
            .ok_or_else(|| self.is_none("an OCI archive", "it has no index.json"))
    }
}

impl Store {
    pub(super) fn import_layout(
        &self,
        layout: &dyn Layout,
        request: ImportRequest<'_>,
        wanted: &Wanted,
    ) -> Result<Digest, ImportError> {
        let bytes = layout.index()?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|source| ImportError::File {
            place: request.place.to_owned(),
            file: "index.json".to_owned(),
            source,
        })?;
        let root = find(&index.manifests, request, wanted)?;
        // What a layout holds is not kept where it is said to be, but by its digest alone.
        self.import(&AsSource(layout), request, root)
    }
}

struct AsSource<'a>(&'a dyn Layout);

impl BlobSource for AsSource<'_> {
    fn open(
        &self,
        digest: &Digest,
        size: Option<u64>,
        kind: BlobKind,
    ) -> Result<Box<dyn Read + '_>, ImportError> {
        self.0.open(digest, size, kind)
    }
}

fn name(entry: &IndexEntry) -> Option<&str> {
    let annotations = entry.annotations.as_ref()?;
    annotations.get(REF_NAME).map(String::as_str)
}

fn find(
    entries: &[IndexEntry],
    request: ImportRequest<'_>,
    wanted: &Wanted,
) -> Result<ImportRoot, ImportError> {
    let root = |entry: &IndexEntry| ImportRoot {
        digest: entry.digest,
        size: Some(entry.size),
    };
    let known = || -> Vec<String> {
        let mut names: Vec<String> = entries.iter().filter_map(name).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    };
    match wanted {
        // It may be in an index of the layout, which tells no size yet.
        Wanted::Digest(digest) => Ok(ImportRoot {
            digest: *digest,
            size: entries
                .iter()
                .find(|entry| entry.digest == *digest)
                .map(|entry| entry.size),
        }),
        Wanted::Tag(tag) => {
            let named: Vec<IndexEntry> = entries
                .iter()
                .filter(|entry| name(entry) == Some(tag))
                .cloned()
                .collect();
            match &named[..] {
                [] => Err(ImportError::NoImage {
                    place: request.place.to_owned(),
                    wanted: tag.clone(),
                    known: known(),
                }),
                [one] => Ok(root(one)),
                several => for_platform(several, request).map(root),
            }
        }
        Wanted::Only => match entries {
            [] => Err(ImportError::NoImage {
                place: request.place.to_owned(),
                wanted: "at all".to_owned(),
                known: Vec::new(),
            }),
            [one] => Ok(root(one)),
            several => {
                // One image for several platforms, or several images.
                let is_index = |entry: &IndexEntry| {
                    [MEDIA_INDEX, MEDIA_DOCKER_LIST].contains(&entry.media_type.as_str())
                };
                let mut names: Vec<_> = several.iter().filter_map(name).collect();
                names.sort();
                names.dedup();
                if names.len() > 1 || several.iter().any(is_index) {
                    return Err(ImportError::Several {
                        place: request.place.to_owned(),
                        known: known(),
                    });
                }
                let with_platform = several.iter().all(|entry| entry.platform.is_some());
                if !with_platform {
                    return Err(ImportError::Several {
                        place: request.place.to_owned(),
                        known: known(),
                    });
                }
                for_platform(several, request).map(root)
            }
        },
    }
}
