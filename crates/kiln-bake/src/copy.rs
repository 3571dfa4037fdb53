//! Files of the definition's folder into the image. Nothing outside that folder is ever read, and no link is followed.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use kiln_model::{CopySpec, ImageSpec};
use kiln_oci::{Content, Entry, Kind, Tree};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::BakeError;
use crate::graph::{CopiedFile, CopiedKind};
use crate::seen::Seen;

/// What a `copy` takes: every path below its source, ordered, with the digest of its content.
pub(crate) fn list(
    image: &ImageSpec,
    copy: &CopySpec,
    context: &Path,
    seen: &mut Seen,
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
    walk(&source, Path::new(""), seen, &mut files).map_err(|error| failed(error.to_string()))?;
    Ok(files)
}

/// Opens a path below `context`, following no link.
pub(crate) fn beneath(context: &Path, from: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let folder = rustix::fs::open(
        context,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let from = if from.as_os_str().is_empty() {
        Path::new(".")
    } else {
        from
    };
    openat2(
        folder,
        from,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS,
    )
}

fn walk(
    source: &Path,
    inside: &Path,
    seen: &mut Seen,
    files: &mut Vec<CopiedFile>,
) -> std::io::Result<()> {
    let there = fs::symlink_metadata(source)?;
    let path = inside.to_string_lossy().into_owned();
    // Only what Git keeps of a mode: another umask gives the same image.
    let executable = there.permissions().mode() & 0o100 != 0;
    let (kind, mode) = if there.is_dir() {
        (CopiedKind::Folder, 0o755)
    } else if there.is_symlink() {
        let target = fs::read_link(source)?.to_string_lossy().into_owned();
        (CopiedKind::Link { target }, 0o777)
    } else if there.is_file() {
        (
            CopiedKind::File {
                digest: seen.digest(source, &there)?,
            },
            if executable { 0o755 } else { 0o644 },
        )
    } else {
        let what = format!("{} is neither file, folder nor link", source.display());
        return Err(std::io::Error::other(what));
    };
    let folder = kind == CopiedKind::Folder;
    files.push(CopiedFile { path, mode, kind });
    if folder {
        let mut names = fs::read_dir(source)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            walk(&source.join(&name), &inside.join(&name), seen, files)?;
        }
    }
    Ok(())
}

/// The layer of a copy. `view`: the image so far.
pub(crate) fn layer(
    image: &ImageSpec,
    copy: &CopySpec,
    files: &[CopiedFile],
    context: &Path,
    view: &Path,
    date: i64,
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
    let to = Path::new(&copy.to);
    let inside: PathBuf = to
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let single = files
        .first()
        .is_some_and(|file| file.kind != CopiedKind::Folder);
    let target = if single && copy.to.ends_with('/') {
        inside.join(Path::new(&copy.from).file_name().unwrap_or_default())
    } else {
        inside
    };
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
        let source = context.join(&copy.from).join(path);
        let source = if path.is_empty() {
            context.join(&copy.from)
        } else {
            source
        };
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
            CopiedKind::File { .. } => {
                let size = fs::symlink_metadata(&source)
                    .map_err(BakeError::io(&source))?
                    .len();
                Entry::new(
                    Kind::File {
                        content: Content::Path(source),
                        size,
                    },
                    *mode,
                )
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
    let passwd = fs::read_to_string(view.join("etc/passwd")).unwrap_or_default();
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
