//! Files of the definition's folder into the image. Nothing outside that folder is ever read, and no link is followed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kiln_model::{CopySpec, Digest, ImageSpec};
use kiln_oci::{Content, Entry, Kind, Tree};
use rustix::fs::{FileType, Mode, OFlags};

use crate::context::beneath::beneath;
use crate::context::listing::FileStat;
use crate::context::stat_cache::{StatCache, UnreadFile};
use crate::error::BakeError;
use crate::front::definition::graph::{CopiedFile, CopiedKind};
use crate::in_root;

/// A passwd file of a real image is a few kilobytes.
const PASSWD_MAX: u64 = 1 << 20;

/// What a `copy` takes: every path below its source, ordered, with the digest of its content.
pub(crate) fn list(
    image: &ImageSpec,
    copy: &CopySpec,
    context: &Path,
    stat_cache: &mut StatCache,
) -> Result<Vec<CopiedFile>, BakeError> {
    let failed = |reason: String| BakeError::Copy {
        image: image.name.to_string(),
        from: copy.from.clone(),
        reason,
    };
    let from = Path::new(&copy.from);
    if from.is_absolute() || from.components().any(|part| part == Component::ParentDir) {
        return Err(failed(
            "it leads out of the definition's folder: copy what is below it".to_owned(),
        ));
    }
    let source = context.join(from);
    // One open that the kernel keeps below the folder, whatever links there are.
    beneath(context, from, OFlags::PATH)
        .map_err(|error| failed(format!("it can't be opened: {error}")))?;
    let mut files = Vec::new();
    let mut unread = Vec::new();
    FileStat::at(&source)
        .and_then(|there| walk(&source, &there, "", stat_cache, &mut files, &mut unread))
        .map_err(|error| failed(error.to_string()))?;
    let read = stat_cache.read(&unread);
    let digests =
        read.map_err(|(path, error)| failed(format!("{} can't be read: {error}", path.display())))?;
    for (file, digest) in unread.iter().zip(digests) {
        files[file.at].kind = CopiedKind::File { digest };
    }
    Ok(files)
}

/// `unseen` are the files whose digests are not known yet.
fn walk(
    source: &Path,
    there: &FileStat,
    inside: &str,
    stat_cache: &mut StatCache,
    files: &mut Vec<CopiedFile>,
    unread: &mut Vec<UnreadFile>,
) -> std::io::Result<()> {
    // Only what Git keeps of a mode: another umask gives the same image.
    let executable = there.mode & 0o100 != 0;
    let (kind, mode) = match there.kind {
        FileType::Directory => (CopiedKind::Folder, 0o755),
        FileType::Symlink => {
            let target = fs::read_link(source)?.to_string_lossy().into_owned();
            (CopiedKind::Link { target }, 0o777)
        }
        FileType::RegularFile => {
            let digest = stat_cache.find(source, &there.stamp).unwrap_or_else(|| {
                unread.push(UnreadFile {
                    at: files.len(),
                    path: source.to_owned(),
                    stamp: there.stamp,
                });
                // Until it is read.
                Digest::from_sha256([0; 32])
            });
            let kind = CopiedKind::File { digest };
            (kind, if executable { 0o755 } else { 0o644 })
        }
        _ => {
            let what = format!("{} is neither file, folder nor link", source.display());
            return Err(std::io::Error::other(what));
        }
    };
    let folder = kind == CopiedKind::Folder;
    let path = inside.to_owned();
    files.push(CopiedFile { path, mode, kind });
    if folder {
        for (name, there) in stat_cache.list(source)?.iter() {
            let text = name.to_string_lossy();
            let inside = if inside.is_empty() {
                text.into_owned()
            } else {
                format!("{inside}/{text}")
            };
            walk(
                &source.join(name),
                there,
                &inside,
                stat_cache,
                files,
                unread,
            )?;
        }
    }
    Ok(())
}

/// The place of what is copied, below the root.
pub(crate) fn target(copy: &CopySpec, files: &[CopiedFile]) -> PathBuf {
    let inside: PathBuf = Path::new(&copy.to)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let single = files
        .first()
        .is_some_and(|file| file.kind != CopiedKind::Folder);
    if single && copy.to.ends_with('/') {
        inside.join(Path::new(&copy.from).file_name().unwrap_or_default())
    } else {
        inside
    }
}

/// The layer of a copy. `view`: the image so far.
pub(crate) fn layer(
    image: &ImageSpec,
    copy: &CopySpec,
    files: &[CopiedFile],
    context: &Path,
    view: &Path,
    date: i64,
    stat_cache: &mut StatCache,
) -> Result<Tree, BakeError> {
    let failed = |reason: String| BakeError::Copy {
        image: image.name.to_string(),
        from: copy.from.clone(),
        reason,
    };
    let (uid, gid) = match &copy.owner {
        None => (0, 0),
        Some(owner) => owner_of(owner, view).map_err(failed)?,
    };
    let target = target(copy, files);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(context, flags, Mode::empty())
        .map_err(|errno| BakeError::io(context)(errno.into()))?;
    let dir = Arc::new(dir);
    let mut tree = Tree::new();
    if let Some(parent) = target.parent() {
        folder(&mut tree, view, parent)?;
    }
    for CopiedFile { path, mode, kind } in files {
        let place = if path.is_empty() {
            target.clone()
        } else {
            target.join(path)
        };
        let inside = if path.is_empty() {
            PathBuf::from(&copy.from)
        } else {
            Path::new(&copy.from).join(path)
        };
        let source = context.join(&inside);
        let entry = match kind {
            CopiedKind::Folder => {
                // A folder that the image has keeps its owner and mode: its contents are copied, not itself.
                if view.join(&place).is_dir() {
                    folder(&mut tree, view, &place)?;
                    continue;
                }
                Entry::dir(*mode)
            }
            CopiedKind::Link { target } => Entry::symlink(target),
            CopiedKind::File { digest } => {
                let file = stat_cache.known_file(&source);
                let file = file
                    .filter(|file| file.content() == *digest)
                    .ok_or_else(|| {
                        let changed = "it changed while the image was baked: bake it again";
                        BakeError::io(&source)(std::io::Error::other(changed))
                    })?;
                let size = file.stamp.size();
                let (dir, path) = (dir.clone(), inside);
                let content = Content::Known { dir, path, file };
                Entry::new(Kind::File { content, size }, *mode)
            }
        };
        tree.insert(&place, entry.owner(uid, gid).mtime(date))?;
    }
    Ok(tree)
}

/// `path` and what is above it, as the image has them: a layer's folder replaces the owner and mode of the one below.
pub(crate) fn folder(tree: &mut Tree, view: &Path, path: &Path) -> Result<(), BakeError> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        inside.push(part);
        if tree.get(&inside).is_some() {
            continue;
        }
        let there = view.join(&inside);
        let entry = match fs::symlink_metadata(&there) {
            Ok(there) if there.is_dir() => Entry::dir(there.mode() & 0o7777)
                .owner(there.uid(), there.gid())
                .mtime(there.mtime()),
            // Below a link of the image (/bin) a layer can't have files of its own without hiding it.
            Ok(_) => {
                return Err(BakeError::io(&there)(std::io::Error::other(
                    "in the image this is no folder: copy to where the link leads",
                )));
            }
            Err(_) => Entry::dir(0o755),
        };
        tree.insert(&inside, entry)?;
    }
    Ok(())
}

fn owner_of(owner: &str, view: &Path) -> Result<(u32, u32), String> {
    let passwd = in_root::text(view, Path::new("etc/passwd"), PASSWD_MAX)
        .map_err(|error| format!("the image's /etc/passwd can't be read: {error}"))?
        .unwrap_or_default();
    let found = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() > 3 && (fields[0] == owner || fields[2] == owner));
    match found {
        Some(fields) => match (fields[2].parse(), fields[3].parse()) {
            (Ok(uid), Ok(gid)) => Ok((uid, gid)),
            _ => Err(format!("the image's entry of `{owner}` has no numbers")),
        },
        None => owner.parse().map(|number| (number, number)).map_err(|_| {
            format!("the image has no user `{owner}`: add a `user \"{owner}\"` block")
        }),
    }
}
