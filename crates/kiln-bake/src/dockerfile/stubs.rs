//! What is made only to be mounted on is no part of the image.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_engine::SandboxMount;
use kiln_oci::{Kind, Tree};

use super::source::resolve;

/// What the mounts of a step leave in its layer.
#[derive(Default)]
pub(super) struct Stubs {
    /// Paths that the image lacks, what is deeper first.
    made: Vec<PathBuf>,
    /// Folders of the image that get something, with mode and owner.
    touched: Vec<(PathBuf, u32, u32, u32)>,
}

/// Finds it before the step, and points the mounts to where the links of the image lead.
pub(super) fn find(view: &Path, mounts: &mut [SandboxMount]) -> io::Result<Stubs> {
    let mut stubs = Stubs::default();
    for mount in mounts {
        let real = resolve(view, Path::new(&mount.to), true)?;
        mount.to = format!("/{}", real.display());
        let mut inside = real.as_path();
        while !inside.as_os_str().is_empty() {
            match fs::symlink_metadata(view.join(inside)) {
                Err(_) => stubs.made.push(inside.to_owned()),
                Ok(there) => {
                    let folder = (
                        inside.to_owned(),
                        there.mode() & 0o7777,
                        there.uid(),
                        there.gid(),
                    );
                    if there.is_dir() && inside != real {
                        stubs.touched.push(folder);
                    }
                }
            }
            inside = inside.parent().unwrap_or(Path::new(""));
        }
    }
    let depth = |path: &Path| std::cmp::Reverse(path.components().count());
    stubs.made.sort_by_key(|path| depth(path));
    stubs.touched.sort_by_key(|(path, ..)| depth(path));
    Ok(stubs)
}

pub(super) fn remove(tree: &mut Tree, stubs: &Stubs) {
    let holds = |tree: &Tree, path: &Path| {
        tree.iter()
            .any(|(other, _)| other != path && other.starts_with(path))
    };
    for path in &stubs.made {
        let empty = match tree.get(path).map(|entry| &entry.kind) {
            Some(Kind::Dir { .. }) => !holds(tree, path),
            Some(Kind::File { size, .. }) => *size == 0,
            _ => false,
        };
        if empty {
            tree.remove(path);
        }
    }
    for (folder, mode, uid, gid) in &stubs.touched {
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
