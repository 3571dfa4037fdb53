//! A context that is no folder yet: an archive or a repository, written to one of ours for as long as the bake lasts.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_git::GitSource;
use kiln_http::without_user;
use kiln_oci::{ContentReader, Kind, Tree};

use super::place::Placing;
use super::unpack::{UnpackError, tar_stream, unpack};
use crate::error::BakeError;
use crate::granted::Granted;
use crate::step::scratch::Scratch;

/// Gone with its folder when dropped.
pub struct ContextFolder {
    path: PathBuf,
    repository: Option<ContextRepository>,
    _scratch: Scratch,
}

/// The commit that a context is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRepository {
    /// Without a user, who may be somebody's secret.
    pub url: String,
    pub commit: String,
}

impl ContextFolder {
    /// None: of an archive.
    pub fn repository(&self) -> Option<&ContextRepository> {
        self.repository.as_ref()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `text` is the address of a Git repository.
    pub fn is_repository(text: &str) -> bool {
        // What is wrong with one is told when it is fetched.
        !matches!(GitSource::parse_context(text), Ok(None))
    }

    /// The files of a tar, compressed or not. `name` is for errors.
    pub fn unpack(work: &Path, archive: &Path, name: &str) -> Result<Self, BakeError> {
        let scratch = Scratch::new(work)?;
        let wrong = |reason: String| BakeError::Context {
            context: name.to_owned(),
            reason,
        };
        let size = fs::metadata(archive).map_err(BakeError::io(archive))?.len();
        let stream = tar_stream(archive)
            .map_err(BakeError::io(archive))?
            .ok_or_else(|| {
                wrong("it is no folder, and no tar in gzip, bzip2, xz, zstd or plain".to_owned())
            })?;
        let spill = scratch.folder("spill")?.join("content");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&spill)
            .map_err(BakeError::io(&spill))?;
        let empty = scratch.folder("empty")?;
        let mut placing = Placing {
            view: &empty,
            owner: None,
            chmod: None,
            date: 0,
            tree: Tree::new(),
            replaced: Vec::new(),
        };
        unpack(&mut placing, stream, size, Path::new(""), file).map_err(|error| match error {
            UnpackError::Write(error) => BakeError::io(&spill)(error),
            UnpackError::Layer(error) => BakeError::Layer(error),
            error => wrong(format!("the archive can't be unpacked: {error}")),
        })?;
        let path = scratch.folder("context")?;
        let tree = placing.tree;
        let is_link = |entry: &kiln_oci::Entry| matches!(entry.kind, Kind::Hardlink { .. });
        // In the order of names, what a hard link is another name of may come later.
        for links in [false, true] {
            for (inside, entry) in tree.iter().skip(1) {
                if is_link(entry) == links {
                    let at = path.join(inside);
                    write(&path, &at, entry).map_err(BakeError::io(&at))?;
                }
            }
        }
        // What may be written to is made first.
        for (inside, entry) in tree.iter().skip(1) {
            if matches!(entry.kind, Kind::Dir { .. }) {
                let at = path.join(inside);
                fs::set_permissions(&at, Permissions::from_mode(entry.mode))
                    .map_err(BakeError::io(&at))?;
            }
        }
        Ok(Self {
            path,
            repository: None,
            _scratch: scratch,
        })
    }

    /// The files of a repository, or of a folder of it: `https://host/path.git#reference:folder`. With `keep_git_dir` its `.git`
    /// is one of them, as where the address says so.
    pub fn check_out(
        work: &Path,
        address: &str,
        keep_git_dir: bool,
        granted: &Granted,
    ) -> Result<Self, BakeError> {
        let wrong = |reason: String| BakeError::Context {
            context: without_user(address),
            reason,
        };
        let source = GitSource::parse_context(address)
            .map_err(wrong)?
            .ok_or_else(|| wrong("it is no address of a repository".to_owned()))?;
        let access = granted.access(work);
        let scratch = Scratch::new(work)?;
        let path = scratch.folder("context")?;
        let found = source.resolve(access)?;
        let keep = keep_git_dir || source.keep_git_dir == Some(true);
        source.check_out(&found, keep, &path, access)?;
        Ok(Self {
            path,
            repository: Some(ContextRepository {
                url: without_user(&source.url),
                commit: found.commit.to_string(),
            }),
            _scratch: scratch,
        })
    }
}

/// Everything above it is a folder of ours by now, as the tree has it. Owners are nobody's in a context.
fn write(root: &Path, at: &Path, entry: &kiln_oci::Entry) -> io::Result<()> {
    match &entry.kind {
        Kind::Dir { .. } => fs::create_dir(at),
        Kind::File { content, size } => {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(at)?;
            copy(&content.open()?, *size, &mut file)?;
            file.set_permissions(Permissions::from_mode(entry.mode))
        }
        Kind::Symlink { target } => symlink(std::ffi::OsStr::from_bytes(target), at),
        Kind::Hardlink { target } => fs::hard_link(root.join(target), at),
        Kind::Fifo | Kind::CharDev { .. } | Kind::BlockDev { .. } | Kind::Whiteout => Err(
            io::Error::other("a context has files, folders and links, and this is none"),
        ),
    }
}

fn copy(content: &ContentReader<'_>, size: u64, out: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < size {
        let count = content.read_within(size, &mut buffer, at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        io::Write::write_all(out, &buffer[..count])?;
        at += count as u64;
    }
    Ok(())
}
