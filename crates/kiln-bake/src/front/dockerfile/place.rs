//! Where COPY puts what it takes, by BuildKit's rules: a layer over the view of what is below.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::{Content, Entry, Kind, KnownFile, LayerError, Tree};
use rustix::fs::{Mode, OFlags};

use super::mode::Chmod;
use super::source::{Found, Taken, TakenKind, resolve, xattrs};
use crate::in_root::is_absent;

#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("`/{0}` is no folder in the image, and a folder is copied there")]
    NotAFolder(String),
    #[error("`/{0}` is a folder in the image, and a file is copied there")]
    IsAFolder(String),
    #[error("{path} can't be read")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the layer can't be described")]
    Layer(#[from] LayerError),
}

/// The layer of one instruction.
pub(super) struct Placing<'a> {
    /// The image so far.
    pub(super) view: &'a Path,
    /// Of everything that is made; what comes from a stage keeps its own where this is none.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) chmod: Option<&'a Chmod>,
    pub(super) date: i64,
    pub(super) tree: Tree,
    /// Files that another one of the same instruction took the place of.
    pub(super) replaced: Vec<PathBuf>,
}

impl Placing<'_> {
    /// `None`: nothing is there.
    fn is_folder(&self, path: &Path) -> Result<Option<bool>, PlaceError> {
        if let Some(entry) = self.tree.get(path) {
            return Ok(Some(matches!(entry.kind, Kind::Dir { .. })));
        }
        let there = self.there(path)?;
        Ok(there.map(|there| there.is_dir()))
    }

    /// What the image has at a path.
    fn there(&self, path: &Path) -> Result<Option<Metadata>, PlaceError> {
        let path = self.view.join(path);
        match fs::symlink_metadata(&path) {
            Ok(there) => Ok(Some(there)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(PlaceError::Io { path, source }),
        }
    }

    /// `path` and what is above it: as the image has them, or new.
    pub(super) fn folder(&mut self, path: &Path) -> Result<(), PlaceError> {
        let mut inside = PathBuf::new();
        for part in path.components() {
            inside.push(part);
            if self.tree.get(&inside).is_some() {
                continue;
            }
            let entry = match self.there(&inside)? {
                Some(there) if there.is_dir() => {
                    let mut entry = Entry::dir(there.mode() & 0o7777)
                        .owner(there.uid(), there.gid())
                        .mtime(there.mtime());
                    let path = self.view.join(&inside);
                    let xattrs = xattrs(&path, &mut Vec::new())
                        .map_err(|source| PlaceError::Io { path, source })?;
                    entry.xattrs = xattrs.into_iter().collect();
                    entry
                }
                Some(_) => return Err(PlaceError::NotAFolder(inside.display().to_string())),
                None => {
                    let (uid, gid) = self.owner.unwrap_or((0, 0));
                    // A mode in numbers is that of the folders on the way as well, one in words is not.
                    let mode = match self.chmod {
                        Some(Chmod::Octal(mode)) => mode & 0o777,
                        Some(Chmod::Symbolic(_)) | None => 0o755,
                    };
                    // As mkdir(2) has it.
                    let entry = match self.group_above(&inside)? {
                        Some(group) if self.owner.is_none() => {
                            Entry::dir(mode | 0o2000).owner(uid, group)
                        }
                        Some(_) => Entry::dir(mode | 0o2000).owner(uid, gid),
                        None => Entry::dir(mode).owner(uid, gid),
                    };
                    entry.mtime(self.date)
                }
            };
            self.tree.insert(&inside, entry)?;
        }
        Ok(())
    }

    /// The group of the folder that `path` is in, where it has the set-group-ID bit.
    fn group_above(&self, path: &Path) -> Result<Option<u32>, PlaceError> {
        let above = path.parent().unwrap_or(Path::new(""));
        let (mode, group) = match self.tree.get(above) {
            Some(entry) => (entry.mode, entry.gid),
            None => match self.there(above)? {
                Some(there) => (there.mode(), there.gid()),
                None => return Ok(None),
            },
        };
        Ok((mode & 0o2000 != 0).then_some(group))
    }

    /// Where `to` is in the image, links followed.
    pub(super) fn target(&self, to: &str) -> Result<PathBuf, PlaceError> {
        let path = Path::new(to);
        resolve(self.view, path, true).map_err(|source| PlaceError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Puts one source at `to`. `known`: what files of the source hold, by their path below its root.
    pub(super) fn put(
        &mut self,
        found: &Found,
        root: &Path,
        to: &str,
        known: &dyn Fn(&Path) -> Option<Arc<KnownFile>>,
    ) -> Result<(), PlaceError> {
        let target = self.target(to)?;
        let into = found.is_folder || to.ends_with('/') || self.is_folder(&target)? == Some(true);
        let (base, parent) = match (found.is_folder, into) {
            (true, _) => (target.clone(), Some(target.as_path())),
            (false, true) => (target.join(&found.name), Some(target.as_path())),
            (false, false) => (target.clone(), target.parent()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| PlaceError::Io {
            path: root.to_owned(),
            source: errno.into(),
        })?;
        let dir = Arc::new(dir);
        if let Some(parent) = parent {
            self.folder(parent)?;
        }
        if !found.is_folder && !into && self.tree.get(&base).is_some() {
            self.replaced.push(base.clone());
        }
        for taken in &found.entries {
            let place = if taken.path.as_os_str().is_empty() {
                base.clone()
            } else {
                base.join(&taken.path)
            };
            // Of the folder itself nothing is copied, neither its mode nor its owner.
            if found.is_folder && taken.path.as_os_str().is_empty() {
                continue;
            }
            let same = taken.same_as.as_ref().map(|other| base.join(other));
            let at = found.place(taken);
            let content = match taken.is_file().then(|| known(&at)).flatten() {
                Some(file) => {
                    let content = Some(file.content());
                    if taken.kind != (TakenKind::File { digest: content }) {
                        let changed = "it changed while the image was baked: bake it again";
                        return Err(PlaceError::Io {
                            path: root.join(at),
                            source: std::io::Error::other(changed),
                        });
                    }
                    let (dir, path) = (dir.clone(), at);
                    Content::Known { dir, path, file }
                }
                None => Content::Under {
                    dir: dir.clone(),
                    path: at,
                },
            };
            self.one(taken, content, &place, same)?;
        }
        Ok(())
    }

    /// `same` is the path of a file of which this is another name.
    fn one(
        &mut self,
        taken: &Taken,
        content: Content,
        place: &Path,
        same: Option<PathBuf>,
    ) -> Result<(), PlaceError> {
        let there = self.is_folder(place)?;
        let kind = match (&taken.kind, same) {
            (TakenKind::File { .. }, Some(target)) => Kind::Hardlink { target },
            (TakenKind::Folder, _) => Kind::Dir { opaque: false },
            (TakenKind::File { .. }, None) => Kind::File {
                content,
                size: taken.size,
            },
            (TakenKind::Link { target }, _) => Kind::Symlink {
                target: target.as_os_str().as_encoded_bytes().to_vec(),
            },
            (TakenKind::Fifo, _) => Kind::Fifo,
        };
        let folder = matches!(kind, Kind::Dir { .. });
        match there {
            Some(true) if !folder => {
                return Err(PlaceError::IsAFolder(place.display().to_string()));
            }
            Some(false) if folder => {
                return Err(PlaceError::NotAFolder(place.display().to_string()));
            }
            _ => {}
        }
        let mode = match (&taken.kind, self.chmod) {
            (TakenKind::Link { .. }, _) => 0o777,
            (_, Some(chmod)) => chmod.apply(taken.mode, folder),
            (_, None) => taken.mode,
        };
        let (uid, gid) = self.owner.or(taken.owner).unwrap_or((0, 0));
        let mut entry = Entry::new(kind, mode)
            .owner(uid, gid)
            .mtime(taken.mtime.unwrap_or(self.date));
        entry.xattrs = taken.xattrs.iter().cloned().collect::<BTreeMap<_, _>>();
        self.tree.insert(place, entry)?;
        Ok(())
    }

    /// A file of a here-document.
    pub(super) fn bytes(&mut self, name: &str, text: String, to: &str) -> Result<(), PlaceError> {
        let target = self.target(to)?;
        let into = to.ends_with('/') || self.is_folder(&target)? == Some(true);
        let place = if into { target.join(name) } else { target };
        if let Some(parent) = place.parent() {
            self.folder(parent)?;
        }
        if self.is_folder(&place)? == Some(true) {
            return Err(PlaceError::IsAFolder(place.display().to_string()));
        }
        let mode = self.chmod.map_or(0o644, |chmod| chmod.apply(0o644, false));
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let entry = Entry::bytes(text.into_bytes(), mode)
            .owner(uid, gid)
            .mtime(self.date);
        self.tree.insert(&place, entry)?;
        Ok(())
    }
}
