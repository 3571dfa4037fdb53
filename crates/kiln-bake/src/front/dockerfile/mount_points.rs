//! Mount points: files and folders that are made for a step's mounts, and are no part of the image.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_engine::SandboxMount;
use kiln_oci::{Kind, Tree};

use super::source::resolve;

/// What the mounts of a step leave in its layer.
#[derive(Default)]
pub(super) struct MountPoints {
    /// Paths that the image lacks, what is deeper first.
    made: Vec<PathBuf>,
    /// Folders of the image that get something, with mode and owner.
    touched: Vec<(PathBuf, u32, u32, u32)>,
}

/// Finds it before the step, and points the mounts to where the links of the image lead.
pub(super) fn find(view: &Path, mounts: &mut [SandboxMount]) -> io::Result<MountPoints> {
    let mut points = MountPoints::default();
    for mount in mounts {
        let real = resolve(view, Path::new(&mount.to), true)?;
        mount.to = format!("/{}", real.display());
        let mut inside = real.as_path();
        while !inside.as_os_str().is_empty() {
            match fs::symlink_metadata(view.join(inside)) {
                Ok(there) if there.is_dir() && inside != real => {
                    let mode = there.mode() & 0o7777;
                    let folder = (inside.to_owned(), mode, there.uid(), there.gid());
                    points.touched.push(folder);
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    points.made.push(inside.to_owned());
                }
                Err(error) => return Err(error),
            }
            inside = inside.parent().unwrap_or(Path::new(""));
        }
    }
    let depth = |path: &Path| std::cmp::Reverse(path.components().count());
    points.made.sort_by_key(|path| depth(path));
    points.touched.sort_by_key(|(path, ..)| depth(path));
    Ok(points)
}

pub(super) fn remove(tree: &mut Tree, points: &MountPoints) {
    let holds = |tree: &Tree, path: &Path| {
        tree.iter()
            .any(|(other, _)| other != path && other.starts_with(path))
    };
    for path in &points.made {
        let empty = match tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::Dir { .. }) => !holds(tree, path),
            Some(Kind::File { size, .. }) => *size == 0,
            _ => false,
        };
        if empty {
            tree.remove(path);
        }
    }
    for (folder, mode, uid, gid) in &points.touched {
        // Copied up for the mount point in it, and otherwise as it was.
        let same = tree.get(folder).is_some_and(|entry| {
            matches!(entry.kind, Kind::Dir { opaque: false })
                && (entry.mode, entry.uid, entry.gid) == (*mode, *uid, *gid)
        });
        if same && !holds(tree, folder) {
            tree.remove(folder);
        }
    }
}
