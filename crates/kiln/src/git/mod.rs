//! The commit that a definition is at, and whether what is baked is what the commit holds. Git itself is not
//! executed: baking needs no program of the host.
//!
//! Dirty is decided about the inputs of the bake alone: the definition, `kiln.lock`, and
//! every file below a copied path, ignored and untracked ones included, because they are copied too; what `.dockerignore`
//! leaves out is not. A `kiln.lock` that no commit has makes dirty too: nobody else has the packages that it names.
//! Files that are as Git's index notes them are not read.
//!
//! The index and the objects are read here rather than by gix: reading them is 320 lines, and gix-index with gix-odb are 55 more
//! crates, of which each month brings versions that break. What is compared with what would stay here either way.
//!
//! Limits: contents are compared as they are, so that a file that Git changes on checkout (line ends, LFS,
//! filters) counts as dirty, as does a submodule; repositories with SHA-256 names or reftables are not read.

mod checkout;
mod compare;
mod index;
mod lookup;
mod objects;

use std::path::{Path, PathBuf};

use kiln_bake::Listings;
use kiln_config::dockerfile::Ignore;
use kiln_git::object::Oid;

use self::compare::Comparing;
use self::index::Index;
pub(crate) use self::lookup::{CommitLookup, LookupResult};
use self::objects::Objects;

/// Beside the definition.
const LOCK: &str = "kiln.lock";

#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("{} can't be read", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not what Git writes there", path.display())]
    Malformed { path: PathBuf },
    #[error("the object {0} is not in the repository")]
    Missing(String),
    #[error("the object {0} is damaged")]
    Damaged(String),
    #[error("the commit {commit} has no folder `{}`", path.display())]
    NoFolder { commit: String, path: PathBuf },
    #[error("{} in the commit is a submodule, whose files are in no object here", path.display())]
    Submodule { path: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) sha: String,
    pub(crate) dirty: bool,
    /// The first of what made it so, in the repository where it is of it.
    pub(crate) changed: Option<PathBuf>,
    /// The folder in the repository that was asked about.
    pub(crate) prefix: PathBuf,
}

/// What is baked: a file, or a folder with all that is in it.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a> {
    path: PathBuf,
    /// Of a folder, what is not taken.
    without: Option<&'a Ignore>,
}

impl From<PathBuf> for Input<'_> {
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            without: None,
        }
    }
}

impl<'a> Input<'a> {
    pub(crate) fn context(path: PathBuf, without: &'a Ignore) -> Self {
        Self {
            path,
            without: Some(without),
        }
    }

    fn leaves_out(&self, path: &Path, is_folder: bool) -> bool {
        let Some(ignore) = self.without.filter(|ignore| !ignore.is_empty()) else {
            return false;
        };
        let inside = path.strip_prefix(&self.path).unwrap_or(path);
        ignore.ignores(&inside.to_string_lossy()) && !(is_folder && ignore.takes_back())
    }
}

/// `None`: in no repository, or in one without a commit. `inputs` are relative to `folder`, where they are not absolute; the lock
/// beside them belongs to them.
pub(crate) fn commit(folder: &Path, inputs: &[Input<'_>], listings: &Listings) -> LookupResult {
    compared(folder, inputs, &[LOCK], listings)
}

/// As `commit`, of what has no lock.
pub(crate) fn commit_without_lock(
    folder: &Path,
    inputs: &[Input<'_>],
    listings: &Listings,
) -> LookupResult {
    compared(folder, inputs, &[], listings)
}

/// `optional`: files of `folder` that there may be, and that are inputs then.
fn compared(
    folder: &Path,
    inputs: &[Input<'_>],
    optional: &[&str],
    listings: &Listings,
) -> LookupResult {
    let folder = folder.canonicalize().map_err(|source| GitError::Io {
        path: folder.to_owned(),
        source,
    })?;
    let Some(repository) = Repository::find(&folder)? else {
        return Ok(None);
    };
    let Some(head) = repository.head()? else {
        return Ok(None);
    };
    let prefix = folder
        .strip_prefix(&repository.work_tree)
        .unwrap_or(Path::new(""));
    let objects = Objects::open(&repository.common);
    // Where the commit can't be read, nothing is as it has it.
    let mut dirty = true;
    let mut changed = None;
    if let Some(root) = compare::root_tree(&objects, head)? {
        let comparing = Comparing {
            objects: &objects,
            index: &Index::open(&repository.git),
            work_tree: &repository.work_tree,
            root,
            listings,
        };
        for input in inputs {
            let input = Input {
                // Without the `.` that a context may be.
                path: folder.join(&input.path).components().collect(),
                without: input.without,
            };
            if changed.is_none() {
                changed = comparing.differs(&input)?;
            }
        }
        for name in optional {
            if changed.is_none() {
                changed = comparing.differs(&Input::from(folder.join(name)))?;
            }
        }
        dirty = changed.is_some();
    }
    Ok(Some(Commit {
        sha: head.to_string(),
        dirty,
        changed: changed.map(|path| match path.strip_prefix(&repository.work_tree) {
            Ok(inside) => inside.to_owned(),
            Err(_) => path,
        }),
        prefix: prefix.to_owned(),
    }))
}

/// Writes the folder `prefix` of the commit `sha`, of the repository that `near` is in, below `into`, which is empty.
/// False: there is no such repository.
pub(crate) fn check_out(
    near: &Path,
    sha: &str,
    prefix: &Path,
    into: &Path,
) -> Result<bool, GitError> {
    let near = near.canonicalize().map_err(|source| GitError::Io {
        path: near.to_owned(),
        source,
    })?;
    let Some(repository) = Repository::find(&near)? else {
        return Ok(false);
    };
    let commit = Oid::parse(sha).ok_or_else(|| GitError::Missing(sha.to_owned()))?;
    let objects = Objects::open(&repository.common);
    checkout::write(&objects, commit, prefix, into)?;
    Ok(true)
}

struct Repository {
    work_tree: PathBuf,
    /// Where HEAD is: of the worktree's own.
    git: PathBuf,
    /// Where objects and branches are.
    common: PathBuf,
}

impl Repository {
    fn find(folder: &Path) -> Result<Option<Self>, GitError> {
        for work_tree in folder.ancestors() {
            let dot_git = work_tree.join(".git");
            let git = if dot_git.is_dir() {
                dot_git
            } else if dot_git.is_file() {
                // A worktree or a submodule: `gitdir: PATH`.
                let text = read(&dot_git)?;
                let target = text
                    .strip_prefix("gitdir:")
                    .ok_or(GitError::Malformed { path: dot_git })?;
                work_tree.join(target.trim())
            } else {
                continue;
            };
            if !git.join("HEAD").exists() {
                continue;
            }
            let common = match optional(&git.join("commondir"))? {
                Some(text) => git.join(text.trim()),
                None => git.clone(),
            };
            return Ok(Some(Self {
                work_tree: work_tree.to_owned(),
                git,
                common,
            }));
        }
        Ok(None)
    }

    fn head(&self) -> Result<Option<Oid>, GitError> {
        let path = self.git.join("HEAD");
        let mut text = read(&path)?.trim().to_owned();
        // A symbolic reference may name another; Git follows five.
        for _ in 0..5 {
            let Some(name) = text.strip_prefix("ref:").map(str::trim) else {
                return Oid::parse(&text)
                    .map(Some)
                    .ok_or(GitError::Malformed { path });
            };
            if name.split('/').any(|part| part == ".." || part.is_empty()) {
                return Err(GitError::Malformed { path });
            }
            let loose = match optional(&self.git.join(name))? {
                Some(found) => Some(found),
                None => optional(&self.common.join(name))?,
            };
            text = match loose {
                Some(found) => found.trim().to_owned(),
                None => match self.packed(name)? {
                    Some(found) => found,
                    // A branch without a commit yet.
                    None => return Ok(None),
                },
            };
        }
        Err(GitError::Malformed { path })
    }

    fn packed(&self, name: &str) -> Result<Option<String>, GitError> {
        let Some(text) = optional(&self.common.join("packed-refs"))? else {
            return Ok(None);
        };
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, found)| *found == name)
            .map(|(oid, _)| oid.to_owned()))
    }
}

fn read(path: &Path) -> Result<String, GitError> {
    std::fs::read_to_string(path).map_err(|source| GitError::Io {
        path: path.to_owned(),
        source,
    })
}

fn optional(path: &Path) -> Result<Option<String>, GitError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::IsADirectory
                    | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(GitError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
