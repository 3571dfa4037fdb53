//! What the root of a container is made of, and how it is mounted.

use std::io;
use std::path::{Path, PathBuf};

use kiln_model::StartFault;
use rustix::mount::{MountFlags, mount_bind_recursive};
use serde::{Deserialize, Serialize};

use crate::overlay;

/// No program gets more rights by a file of it, and no device is reached by one.
pub(crate) const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What the root is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Root {
    /// Layer folders, bottom to top, below a generated `top`; nothing can be written.
    ReadOnly { layers: Vec<PathBuf>, top: PathBuf },
    /// Folders, bottom to top, under a writable one.
    Writable {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
    },
    /// A folder as it is.
    Folder { path: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("{what} at {path} failed: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "`tmpfs \"{path}\"`: the image has a file there, and a tmpfs needs a folder: use another path"
    )]
    NotAFolder { path: String },
    #[error(
        "`tmpfs \"{path}\"` leads to {target}, where the kernel's own files are: use another path"
    )]
    NotAPlace { path: String, target: PathBuf },
}

impl RootError {
    pub(crate) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io {
            what,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn fault(&self) -> StartFault {
        match self {
            Self::Io { .. } => StartFault::Mount,
            Self::NotAFolder { .. } | Self::NotAPlace { .. } => StartFault::Release,
        }
    }
}

/// Mounts the root at `target`.
pub(crate) fn mount_root(root: &Root, target: &Path) -> Result<(), RootError> {
    let overlay = |lowers: Vec<&Path>, rest: Option<(&Path, &Path)>, flags| {
        overlay::mount(&lowers, rest, target, flags)
            .map_err(RootError::at("mounting the overlay", target))
    };
    match root {
        Root::ReadOnly { layers, top } => {
            let lowers = layers.iter().chain([top]).map(PathBuf::as_path).collect();
            overlay(lowers, None, MountFlags::RDONLY | SAFE)
        }
        Root::Writable {
            lowers,
            upper,
            work,
        } => {
            if lowers.is_empty() {
                return bind_folder(upper, target);
            }
            let lowers = lowers.iter().map(PathBuf::as_path).collect();
            overlay(lowers, Some((upper, work)), MountFlags::NODEV)
        }
        Root::Folder { path } => bind_folder(path, target),
    }
}

fn bind_folder(path: &Path, target: &Path) -> Result<(), RootError> {
    mount_bind_recursive(path, target).map_err(RootError::at("binding the folder", path))
}
