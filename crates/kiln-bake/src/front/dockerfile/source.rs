//! What COPY takes: paths below the context, or below the view of a stage or an image. No link leads out of either.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kiln_config::dockerfile::{Ignore, PathPattern, has_wildcards};
use kiln_model::Digest;
use rustix::fs::FileType;
use serde::Serialize;

use crate::context::listing::{FileStat, Listing};
use crate::context::stat_cache::{StatCache, UnreadFile};
use crate::error::BakeError;
use crate::in_root::is_absent;

/// As Linux follows at most (MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// One path that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Taken {
    /// Below [`Found::at`], and below the destination's folder; empty for a folder whose contents are copied.
    #[serde(serialize_with = "whole")]
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    /// None: the context's, which have no owner.
    pub(super) owner: Option<(u32, u32)>,
    #[serde(skip)]
    pub(super) mtime: Option<i64>,
    #[serde(skip)]
    pub(super) size: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) kind: TakenKind,
    /// The `path` of the same source that is another name of this file.
    #[serde(serialize_with = "whole_or_none")]
    pub(super) same_as: Option<PathBuf>,
    /// Device and inode, where the file has other names.
    #[serde(skip)]
    inode: Option<(u64, u64)>,
}

impl Taken {
    /// A file that was brought from elsewhere.
    pub(super) fn fetched(mode: u32, mtime: Option<i64>, size: u64, digest: Digest) -> Self {
        Self {
            path: PathBuf::new(),
            mode,
            owner: None,
            mtime,
            size,
            xattrs: Vec::new(),
            kind: TakenKind::File {
                digest: Some(digest),
            },
            same_as: None,
            inode: None,
        }
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.kind, TakenKind::File { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TakenKind {
    Folder,
    /// The digest where it is part of a key.
    File {
        digest: Option<Digest>,
    },
    Link {
        #[serde(serialize_with = "whole")]
        target: PathBuf,
    },
    Fifo,
}

/// A path as text where it is text, and as its bytes where it is none: serde refuses those, and a Linux path may be anything.
fn whole<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => text.serialize(serializer),
        None => path.as_os_str().as_bytes().serialize(serializer),
    }
}

fn whole_or_none<S: serde::Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => whole(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// One source of a COPY, found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    /// The name that a file gets below a destination that is a folder.
    pub(super) name: OsString,
    pub(super) is_folder: bool,
    /// What the entries' paths are below, itself below the root of the source.
    #[serde(skip)]
    pub(super) at: PathBuf,
    /// The source itself first; folders before what is in them.
    pub(super) entries: Vec<Taken>,
}

impl Found {
    /// Where an entry is, below the root of the source.
    pub(super) fn place(&self, taken: &Taken) -> PathBuf {
        if taken.path.as_os_str().is_empty() {
            self.at.clone()
        } else {
            self.at.join(&taken.path)
        }
    }
}

/// Where sources are looked for.
pub(super) struct Root<'a> {
    pub(super) path: &'a Path,
    /// The context's; a stage's files are all there.
    pub(super) ignore: Option<&'a Ignore>,
    pub(super) exclude: &'a Ignore,
    /// The context's files are known by their digests.
    pub(super) stat_cache: Option<&'a mut StatCache>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("there is no `{0}`")]
    Missing(String),
    #[error("`{0}` is there and left out by .dockerignore")]
    Ignored(String),
    #[error("`{0}` is no pattern: a `[` is not closed")]
    Pattern(String),
    #[error("{path} can't be read")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// As the error of a step.
    pub(super) fn of(self, step: &str) -> BakeError {
        match self {
            Self::Io { path, source } => BakeError::io(path)(source),
            error @ (Self::Missing(_) | Self::Pattern(_) | Self::Ignored(_)) => {
                BakeError::DockerfileStep {
                    step: step.to_owned(),
                    reason: error.to_string(),
                }
            }
        }
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    move |source| SourceError::Io { path, source }
}

/// `path` below `root` with all links followed inside it, the last one only where asked. What is not there is taken as it is named.
pub(super) fn resolve(root: &Path, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
    let mut left: Vec<OsString> = Vec::new();
    let push = |left: &mut Vec<OsString>, path: &Path| {
        for part in path.components().rev() {
            match part {
                Component::Normal(name) => left.push(name.to_owned()),
                Component::ParentDir => left.push("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    };
    push(&mut left, path);
    let mut inside = PathBuf::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            inside.pop();
            continue;
        }
        let next = inside.join(&name);
        let is_link = match fs::symlink_metadata(root.join(&next)) {
            Ok(there) => there.is_symlink(),
            Err(error) if is_absent(&error) => false,
            Err(error) => return Err(error),
        };
        if !is_link || left.is_empty() && !follow_last {
            inside = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::other("it leads through too many links"));
        }
        let target = fs::read_link(root.join(&next))?;
        if target.is_absolute() {
            inside = PathBuf::new();
        }
        push(&mut left, &target);
    }
    Ok(inside)
}

/// `path` without `.`, `..` and a leading `/`: below the root whatever it says.
pub(super) fn lexical(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

impl Root<'_> {
    fn ignored(&self, path: &Path) -> bool {
        let rules = self.ignore.filter(|ignore| !ignore.is_empty());
        let is_below = !path.as_os_str().is_empty();
        is_below && rules.is_some_and(|rules| rules.ignores(&path.to_string_lossy()))
    }

    /// What one source of COPY means.
    pub(super) fn find(&mut self, source: &str) -> Result<Vec<Found>, SourceError> {
        let clean = lexical(source);
        let text = clean.to_string_lossy().into_owned();
        if has_wildcards(&text) {
            let paths = self.expand(&text, false)?;
            self.of_paths(source, paths, true)
        } else {
            self.of_paths(source, vec![clean], false)
        }
    }

    /// What the source of a mount means: a file or folder of just that name.
    pub(super) fn find_one(&mut self, source: &str) -> Result<Vec<Found>, SourceError> {
        self.of_paths(source, vec![lexical(source)], false)
    }

    /// `wild`: what is not there, or not taken, is left out.
    fn of_paths(
        &mut self,
        source: &str,
        paths: Vec<PathBuf>,
        wild: bool,
    ) -> Result<Vec<Found>, SourceError> {
        let mut found = Vec::new();
        for path in paths {
            let at = resolve(self.path, &path, true).map_err(io_at(&path))?;
            match fs::symlink_metadata(self.path.join(&at)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && wild => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(SourceError::Missing(source.to_owned()));
                }
                Err(error) => return Err(io_at(&self.path.join(&at))(error)),
                Ok(_) => {}
            }
            let mut entries = Vec::new();
            self.walk(&at, Path::new(""), &mut entries)?;
            link_names(&mut entries);
            let name = path.file_name().unwrap_or_default().to_owned();
            // Only what is below tells whether a rule takes something of it back.
            if self.ignored(&at) && entries.len() <= 1 {
                if wild {
                    continue;
                }
                return Err(SourceError::Ignored(source.to_owned()));
            }
            let is_folder = entries
                .first()
                .is_some_and(|entry| entry.kind == TakenKind::Folder);
            if !is_folder && self.exclude.ignores(&name.to_string_lossy()) {
                continue;
            }
            found.push(Found {
                name,
                is_folder,
                at,
                entries,
            });
        }
        Ok(found)
    }

    /// What one source of `COPY --parents` means: everything keeps its path, from `/./` on.
    pub(super) fn find_with_parents(&mut self, source: &str) -> Result<Vec<Found>, SourceError> {
        let trimmed = source.trim_start_matches("./");
        let (base, rest) = match format!("/{trimmed}").split_once("/./") {
            Some((base, rest)) => (lexical(base), lexical(rest)),
            None => (PathBuf::new(), lexical(trimmed)),
        };
        let text = base.to_string_lossy();
        if !has_wildcards(&text) {
            return Ok(vec![self.below(source, &base, &rest)?]);
        }
        let mut found = Vec::new();
        for base in self.expand(&text, false)? {
            if self.path.join(&base).is_dir() {
                match self.below(source, &base, &rest) {
                    Err(SourceError::Missing(_)) => {}
                    one => found.push(one?),
                }
            }
        }
        Ok(found)
    }

    fn below(&mut self, source: &str, base: &Path, rest: &Path) -> Result<Found, SourceError> {
        let base = resolve(self.path, base, true).map_err(io_at(base))?;
        let text = base.join(rest).to_string_lossy().into_owned();
        let wild = has_wildcards(&rest.to_string_lossy());
        let paths = if wild {
            self.expand(&text, true)?
        } else {
            vec![base.join(rest)]
        };
        let mut entries: Vec<Taken> = Vec::new();
        let mut parents = BTreeSet::new();
        for path in paths {
            let below = path.strip_prefix(&base).unwrap_or(&path).to_owned();
            // As BuildKit has it, no link on the way is followed.
            let is_there = resolve(self.path, &path, false).map_err(io_at(&path))? == path;
            match fs::symlink_metadata(self.path.join(&path)) {
                Ok(_) if is_there => {}
                Err(error) if is_there && !is_absent(&error) => {
                    return Err(io_at(&self.path.join(&path))(error));
                }
                _ => return Err(SourceError::Missing(source.to_owned())),
            }
            let mut parent = PathBuf::new();
            for part in below.parent().into_iter().flat_map(Path::components) {
                parent.push(part);
                if parents.insert(parent.clone()) {
                    let mut walking = Walking::new(self, &base.join(&parent), &parent);
                    let there = walking.there()?;
                    entries.extend(walking.one(&there)?);
                }
            }
            self.walk(&path, &below, &mut entries)?;
        }
        if entries.is_empty() && !wild {
            return Err(SourceError::Ignored(source.to_owned()));
        }
        let mut known = BTreeSet::new();
        entries.retain(|entry| known.insert(entry.path.clone()));
        link_names(&mut entries);
        Ok(Found {
            name: OsString::new(),
            is_folder: true,
            at: base,
            entries,
        })
    }

    /// The paths that fit a pattern, in order.
    fn expand(&self, pattern: &str, deep: bool) -> Result<Vec<PathBuf>, SourceError> {
        let compiled = if deep {
            PathPattern::deep(pattern)
        } else {
            PathPattern::flat(pattern)
        }
        .ok_or_else(|| SourceError::Pattern(pattern.to_owned()))?;
        // Nothing above the first wildcard has to be looked through.
        let fixed: PathBuf = Path::new(pattern)
            .components()
            .take_while(|part| !has_wildcards(&part.as_os_str().to_string_lossy()))
            .collect();
        let depth = (!deep).then(|| Path::new(pattern).components().count());
        let mut found = Vec::new();
        self.matching(&fixed, &compiled, depth, &mut found)?;
        Ok(found)
    }

    fn matching(
        &self,
        folder: &Path,
        pattern: &PathPattern,
        depth: Option<usize>,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), SourceError> {
        let real = self
            .path
            .join(resolve(self.path, folder, true).map_err(io_at(folder))?);
        let entries = match fs::read_dir(&real) {
            // Nothing there fits.
            Err(error) if is_absent(&error) => return Ok(()),
            entries => entries.map_err(io_at(&real))?,
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(io_at(&real))?;
        names.sort();
        for name in names {
            let path = folder.join(&name);
            if pattern.fits(&path.to_string_lossy()) {
                found.push(path.clone());
            }
            let at = real.join(&name);
            let is_folder = fs::symlink_metadata(&at).map_err(io_at(&at))?.is_dir();
            if is_folder && depth.is_none_or(|depth| path.components().count() < depth) {
                self.matching(&path, pattern, depth, found)?;
            }
        }
        Ok(())
    }

    fn walk(
        &mut self,
        at: &Path,
        inside: &Path,
        entries: &mut Vec<Taken>,
    ) -> Result<(), SourceError> {
        let mut walking = Walking::new(self, at, inside);
        let there = walking.there()?;
        walking.add(&there, entries)?;
        let unread = std::mem::take(&mut walking.unread);
        if let Some(stat_cache) = &mut self.stat_cache
            && !unread.is_empty()
        {
            let read = stat_cache.read(&unread);
            let digests = read.map_err(|(path, source)| SourceError::Io { path, source })?;
            for (file, digest) in unread.iter().zip(digests) {
                let digest = Some(digest);
                entries[file.at].kind = TakenKind::File { digest };
            }
        }
        Ok(())
    }
}

/// The way through a folder: one buffer for each form of the path, and not a new path for each file.
struct Walking<'w, 'a> {
    root: &'w mut Root<'a>,
    /// Of this machine.
    path: PathBuf,
    /// Below the root of the source.
    at: PathBuf,
    /// Below what is copied.
    inside: PathBuf,
    unread: Vec<UnreadFile>,
    /// For attributes.
    buffer: Vec<u8>,
}

impl<'w, 'a> Walking<'w, 'a> {
    fn new(root: &'w mut Root<'a>, at: &Path, inside: &Path) -> Self {
        Self {
            path: root.path.join(at),
            root,
            at: at.to_owned(),
            inside: inside.to_owned(),
            unread: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn there(&self) -> Result<FileStat, SourceError> {
        FileStat::at(&self.path).map_err(io_at(&self.path))
    }

    fn add(&mut self, there: &FileStat, entries: &mut Vec<Taken>) -> Result<(), SourceError> {
        let is_below = !self.inside.as_os_str().is_empty();
        let exclude = self.root.exclude;
        let excluded =
            is_below && !exclude.is_empty() && exclude.ignores(&self.inside.to_string_lossy());
        if excluded && !exclude.takes_back() {
            return Ok(());
        }
        let ignored = self.root.ignored(&self.at);
        if ignored && !self.root.ignore.is_some_and(Ignore::takes_back) {
            // The source itself is told as ignored by whoever asked for it.
            return Ok(());
        }
        let place = entries.len();
        let Some(entry) = self.one(there)? else {
            return Ok(());
        };
        let is_folder = entry.kind == TakenKind::Folder;
        if matches!(entry.kind, TakenKind::File { digest: None }) && self.root.stat_cache.is_some()
        {
            self.unread.push(UnreadFile {
                at: place,
                path: self.path.clone(),
                stamp: there.stamp,
            });
        }
        entries.push(entry);
        if is_folder {
            let listing = match &self.root.stat_cache {
                Some(stat_cache) => stat_cache.list(&self.path),
                None => Listing::of(&self.path).map(Arc::new),
            };
            let listing = listing.map_err(io_at(&self.path))?;
            for (name, there) in listing.iter() {
                for path in [&mut self.path, &mut self.at, &mut self.inside] {
                    path.push(name);
                }
                self.add(there, entries)?;
                for path in [&mut self.path, &mut self.at, &mut self.inside] {
                    path.pop();
                }
            }
        }
        // A folder that is left out stays for what a rule takes back in it.
        if (ignored || excluded) && entries.len() == place + 1 && is_below {
            entries.pop();
            if self.unread.last().is_some_and(|file| file.at == place) {
                self.unread.pop();
            }
        }
        Ok(())
    }

    /// One path; none for a socket, which no layer has. The digest of a file is there where it is known.
    fn one(&mut self, there: &FileStat) -> Result<Option<Taken>, SourceError> {
        let failed = |source| io_at(&self.path)(source);
        let is_context = self.root.stat_cache.is_some();
        let kind = match there.kind {
            FileType::Directory => TakenKind::Folder,
            FileType::Symlink => {
                let target = fs::read_link(&self.path).map_err(failed)?;
                TakenKind::Link { target }
            }
            FileType::RegularFile => {
                let stat_cache = self.root.stat_cache.as_mut();
                let digest =
                    stat_cache.and_then(|stat_cache| stat_cache.find(&self.path, &there.stamp));
                TakenKind::File { digest }
            }
            FileType::Fifo => TakenKind::Fifo,
            FileType::Socket => return Ok(None),
            _ => return Err(failed(io::Error::other("a device can't be copied"))),
        };
        let has_names = matches!(kind, TakenKind::File { .. }) && there.names > 1;
        Ok(Some(Taken {
            path: self.inside.clone(),
            mode: there.mode,
            owner: (!is_context).then_some((there.uid, there.gid)),
            mtime: (!is_context).then_some(there.mtime),
            size: there.stamp.size(),
            xattrs: if is_context {
                Vec::new()
            } else {
                xattrs(&self.path, &mut self.buffer).map_err(io_at(&self.path))?
            },
            kind,
            same_as: None,
            inode: has_names.then_some((there.device, there.inode)),
        }))
    }
}

/// Names of one file stay names of one file.
fn link_names(entries: &mut [Taken]) {
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    for entry in entries {
        if let Some(inode) = entry.inode {
            match first.get(&inode) {
                Some(path) => entry.same_as = Some(path.clone()),
                None => drop(first.insert(inode, entry.path.clone())),
            }
        }
    }
}

pub(super) fn xattrs(path: &Path, buffer: &mut Vec<u8>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Linux's bound for both (XATTR_LIST_MAX, XATTR_SIZE_MAX).
    buffer.resize(65536, 0);
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let names = buffer[..length].to_vec();
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."));
    names
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, name, &mut buffer[..])?;
            Ok((name.to_vec(), buffer[..length].to_vec()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_and_never_out() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/../../../../usr", root.join("far")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (path, expected) in [
            ("/bin/sh", "usr/bin/sh"),
            ("far/bin", "usr/bin"),
            ("../../etc/passwd", "etc/passwd"),
            ("none/../bin/x", "usr/bin/x"),
        ] {
            let found = resolve(root, Path::new(path), true).unwrap();
            assert_eq!(found, Path::new(expected), "{path}");
        }
        assert_eq!(
            resolve(root, Path::new("bin"), false).unwrap(),
            Path::new("bin")
        );
        assert!(resolve(root, Path::new("loop"), true).is_err());
        // `/etc/hosts` is here too.
        symlink("/etc", root.join("etc-link")).unwrap();
        fs::write(root.join("usr/bin/sh"), "").unwrap();
        let nothing = Ignore::default();
        let mut of = Root {
            path: root,
            ignore: None,
            exclude: &nothing,
            stat_cache: None,
        };
        for source in ["etc-link/hosts", "bin/sh"] {
            let error = of.find_with_parents(source).unwrap_err();
            assert!(matches!(error, SourceError::Missing(_)), "{source}");
        }
        let found = of.find_with_parents("etc-link/*").unwrap();
        assert!(found.iter().all(|one| one.entries.is_empty()));
        let found = of.find_with_parents("usr/bin/sh").unwrap();
        let paths: Vec<_> = found[0].entries.iter().map(|entry| &entry.path).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/sh"].map(Path::new));
    }
}
