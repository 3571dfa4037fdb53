//! A commit's files written to a folder. Its names are anybody's: none may lead out, and none is written through a link.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_oci::unpacked_max;

use crate::access::{Access, Origin, Trust};
use crate::error::GitError;
use crate::object::{self, Kind, Mode, Oid, TreeItem};
use crate::pack::{Pack, WORK_MAX, read_tree};
use crate::protocol::PACK_MAX;
use crate::reference::Resolved;
use crate::source::GitSource;
use crate::{git_dir, modules};

/// As deep as any path of Linux can be (PATH_MAX), with names of one letter.
const DEPTH_MAX: usize = 2048;
/// Chromium has half a million. A tree may name another again and again, so that a small pack has any number.
const FILES_MAX: u64 = 4 << 20;

/// Kubernetes, LLVM and Qt have dozens.
const MODULES_MAX: u32 = 512;
/// Of `.gitmodules`, in bytes.
const MODULES_FILE_MAX: usize = 1 << 20;
/// Of submodules in one another. Each level holds a pack.
const NESTED_MAX: usize = 16;

/// A commit with its submodules on its way into a folder. The bounds are those of all of them together.
struct Checkout<'a> {
    trust: Trust<'a>,
    /// With `.git`.
    keep: bool,
    files_left: u64,
    modules_left: u32,
    pack_left: u64,
    /// What all packs have, in bytes, and what was taken out of them.
    packed: u64,
    unpacked: u64,
    work_left: u64,
}

/// One repository of them.
struct Module<'a> {
    source: &'a GitSource,
    pack: &'a Pack,
    /// Of the commit that is taken.
    root: Oid,
    /// In submodules, from the caller's repository on.
    nested: usize,
    /// The folder that has its `.git`, where that is kept.
    kept: Option<&'a Path>,
    /// By path.
    known: Option<BTreeMap<String, modules::Module>>,
    /// The submodules that were written.
    written: Vec<git_dir::Submodule>,
}

impl GitSource {
    /// Writes the files of what was resolved into `to`, an empty folder; with `keep`, `.git` as well.
    pub fn check_out(
        &self,
        found: &Resolved,
        keep: bool,
        to: &Path,
        access: Access<'_>,
    ) -> Result<(), GitError> {
        let origin = Origin::of(&self.url);
        let trust = Trust {
            access,
            origin: &origin,
        };
        // As BuildKit has it, a part of a repository is none.
        let keep = keep && folders(&self.folder).next().is_none();
        Checkout::new(trust, keep).write(self, found, to)
    }
}

impl<'a> Checkout<'a> {
    fn new(trust: Trust<'a>, keep: bool) -> Self {
        Self {
            trust,
            keep,
            files_left: FILES_MAX,
            modules_left: MODULES_MAX,
            pack_left: PACK_MAX,
            packed: 0,
            unpacked: 0,
            work_left: WORK_MAX,
        }
    }

    fn write(mut self, source: &GitSource, found: &Resolved, to: &Path) -> Result<(), GitError> {
        let git = self.keep.then(|| to.join(".git"));
        self.repository(source, found, to, 0, git.as_deref())
    }

    /// `git`: where what is kept of its own goes; a submodule's is not in its folder.
    fn repository(
        &mut self,
        source: &GitSource,
        found: &Resolved,
        to: &Path,
        nested: usize,
        git: Option<&Path>,
    ) -> Result<(), GitError> {
        let work = self.work_left;
        let pack = source.pack(found, self.trust, self.pack_left, work)?;
        self.pack_left = self.pack_left.saturating_sub(pack.length());
        self.packed += pack.length();
        let written = self.of_pack(source, found, &pack, (to, nested, git));
        self.work_left = self
            .work_left
            .saturating_sub(work.saturating_sub(pack.work_left()));
        written
    }

    fn of_pack(
        &mut self,
        source: &GitSource,
        found: &Resolved,
        pack: &Pack,
        (to, nested, git): (&Path, usize, Option<&Path>),
    ) -> Result<(), GitError> {
        let failed = |problem: String| source.error(problem);
        let commit = found.commit;
        let bytes = pack.object(commit, Kind::Commit).map_err(failed)?;
        let root = object::tree_of(&bytes)
            .ok_or_else(|| failed(format!("its commit {commit} is damaged")))?;
        let mut module = Module {
            source,
            pack,
            root,
            nested,
            kept: git,
            known: None,
            written: Vec::new(),
        };
        let (mut tree, mut inside) = (root, PathBuf::new());
        let mut parts = folders(&source.folder);
        while let Some(part) = parts.next() {
            let entries = read_tree(pack, tree).map_err(failed)?;
            let entry = entries
                .into_iter()
                .find(|entry| entry.name == part.as_bytes());
            inside.push(part);
            match entry.map(|entry| (entry.mode, entry.oid)) {
                Some((Mode::Folder, oid)) => tree = oid,
                Some((Mode::Submodule, oid)) if source.submodules => {
                    let rest = parts.collect::<Vec<_>>().join("/");
                    return self.submodule(&mut module, &inside, oid, &rest, to);
                }
                _ => return Err(failed(format!("it has no folder `{}`", source.folder))),
            }
        }
        self.folder(&mut module, tree, &inside, to)?;
        match git {
            None => Ok(()),
            Some(git) => git_dir::write(git, to, source, found, pack, root, &module.written),
        }
    }

    /// `to` is a new folder of ours, so that nothing in it is a link that is followed. `inside` is where it is in its repository.
    fn folder(
        &mut self,
        module: &mut Module<'_>,
        tree: Oid,
        inside: &Path,
        to: &Path,
    ) -> Result<(), GitError> {
        let source = module.source;
        let items = |tree, inside: PathBuf, to: PathBuf| {
            let items = read_tree(module.pack, tree).map_err(|problem| source.error(problem))?;
            Ok::<_, GitError>((items.into_iter(), inside, to))
        };
        // Not by calling itself: trees of anybody's are deeper than a thread's stack.
        let mut open = vec![items(tree, inside.to_owned(), to.to_owned())?];
        let mut submodules = Vec::new();
        while let Some((rest, inside, to)) = open.last_mut() {
            let Some(TreeItem { mode, name, oid }) = rest.next() else {
                open.pop();
                continue;
            };
            self.files_left = self.files_left.checked_sub(1).ok_or_else(|| {
                source.error("it has more files and folders than any repository has")
            })?;
            let name = OsStr::from_bytes(&name);
            let (path, inside) = (to.join(name), inside.join(name));
            let io = || GitError::io(&path);
            let new_folder = || {
                DirBuilder::new().create(&path).map_err(io())?;
                fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(io())
            };
            match mode {
                Mode::Folder => {
                    new_folder()?;
                    if open.len() > DEPTH_MAX {
                        return Err(source.error("its folders are too deep"));
                    }
                    open.push(items(oid, inside, path)?);
                }
                Mode::File | Mode::Executable => {
                    let content = self.blob(module, oid)?;
                    let mut file = File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&path)
                        .map_err(io())?;
                    file.write_all(&content).map_err(io())?;
                    let mode = if mode == Mode::File { 0o644 } else { 0o755 };
                    file.set_permissions(Permissions::from_mode(mode))
                        .map_err(io())?;
                }
                Mode::Link => {
                    let target = self.blob(module, oid)?;
                    symlink(OsStr::from_bytes(&target), &path).map_err(io())?;
                }
                Mode::Submodule => {
                    new_folder()?;
                    if source.submodules {
                        submodules.push((inside, oid, path));
                    }
                }
            }
        }
        for (inside, commit, path) in submodules {
            self.submodule(module, &inside, commit, "", &path)?;
        }
        Ok(())
    }

    /// Writes the submodule at `inside`, or its folder `folder`, into `to`.
    fn submodule(
        &mut self,
        module: &mut Module<'_>,
        inside: &Path,
        commit: Oid,
        folder: &str,
        to: &Path,
    ) -> Result<(), GitError> {
        let outer = module.source;
        self.modules_left = self
            .modules_left
            .checked_sub(1)
            .ok_or_else(|| outer.error(format!("it has more than {MODULES_MAX} submodules")))?;
        let Some(found) = self.called(module, inside)? else {
            return match folder {
                "" => Ok(()),
                folder => Err(outer.error(format!(
                    "it has no folder `{folder}` in `{}`, a submodule that nobody gets (update = none)",
                    inside.display()
                ))),
            };
        };
        let failed = |reason: String| {
            outer.error(format!(
                "its submodule `{}` can't be had: {reason}",
                inside.display()
            ))
        };
        let address = modules::address(&outer.url, &found.url)
            .ok_or_else(|| failed(format!("`{}` leads nowhere", found.url.escape_debug())))?;
        if module.nested == NESTED_MAX {
            return Err(failed(format!(
                "it is in more than {NESTED_MAX} others, one in another"
            )));
        }
        let source = GitSource {
            folder: folder.to_owned(),
            ..GitSource::new(&address, commit.to_string())
        };
        let git = module
            .kept
            .map(|kept| kept.join("modules").join(&found.name));
        let resolved = Resolved {
            commit,
            tag: None,
            name: None,
        };
        self.repository(&source, &resolved, to, module.nested + 1, git.as_deref())
            .map_err(|error| match error {
                GitError::Repository { url, reason } => failed(format!("{url}: {reason}")),
                other => other,
            })?;
        module.written.push(git_dir::Submodule {
            name: found.name,
            url: address,
        });
        Ok(())
    }

    /// What `.gitmodules` says of the submodule at `inside`; none where nobody is to get it.
    fn called(
        &mut self,
        module: &mut Module<'_>,
        inside: &Path,
    ) -> Result<Option<modules::Module>, GitError> {
        let failed = |problem: &str| {
            let place = inside.display();
            let problem = format!("its submodule `{place}` can't be had: {problem}");
            module.source.error(problem)
        };
        if module.known.is_none() {
            let items = read_tree(module.pack, module.root).map_err(|problem| failed(&problem))?;
            let file = items.into_iter().find(|item| item.name == b".gitmodules");
            let file = file.filter(|item| matches!(item.mode, Mode::File | Mode::Executable));
            let file = file.ok_or_else(|| failed("it has no .gitmodules"))?;
            let bytes = self.blob(module, file.oid)?;
            if bytes.len() > MODULES_FILE_MAX {
                return Err(failed(".gitmodules is larger than any"));
            }
            let text = String::from_utf8(bytes).map_err(|_| failed(".gitmodules is no text"))?;
            let known = modules::parse(&text);
            module.known = Some(known.ok_or_else(|| failed(".gitmodules is not what Git writes"))?);
        }
        let known = module.known.as_ref();
        let found = inside
            .to_str()
            .and_then(|inside| known.and_then(|known| known.get(inside)));
        match found {
            Some(found) if found.is_left_out => Ok(None),
            Some(found) if found.url.is_empty() => Err(failed(".gitmodules has no url for it")),
            Some(found) if !modules::is_name(&found.name) => Err(failed(
                "no folder may have the name that .gitmodules gives it",
            )),
            Some(found) => Ok(Some(found.clone())),
            None => Err(failed(".gitmodules does not name it")),
        }
    }

    fn blob(&mut self, module: &Module<'_>, oid: Oid) -> Result<Vec<u8>, GitError> {
        let failed = |problem: String| module.source.error(problem);
        let bytes = module.pack.object(oid, Kind::Blob).map_err(failed)?;
        self.unpacked += bytes.len() as u64;
        let most = unpacked_max(self.packed);
        if self.unpacked > most {
            let problem = format!("it unpacks to more than {most} bytes");
            return Err(module.source.error(problem));
        }
        Ok(bytes)
    }
}

/// The names of a path's folders.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::tests::packed;

    fn within(pack: &Pack, commit: Oid, to: &Path, files: u64, bytes: u64) -> Result<(), GitError> {
        let (secrets, ssh) = (BTreeMap::new(), BTreeMap::new());
        let trust = Trust {
            access: Access {
                secrets: &secrets,
                ssh: &ssh,
                ssh_config: None,
                work: to,
            },
            origin: &None,
        };
        let found = Resolved {
            commit,
            tag: None,
            name: None,
        };
        let source = GitSource::new("https://x.io/a.git", String::new());
        let mut checkout = Checkout::new(trust, false);
        checkout.files_left = files;
        // As if so much had been taken before.
        checkout.unpacked = unpacked_max(0) - bytes;
        checkout.of_pack(&source, &found, pack, (to, 0, None))
    }

    fn tree(items: &[(&str, &str, Oid)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mode, name, oid) in items {
            bytes.extend(format!("{mode} {name}\0").into_bytes());
            bytes.extend(oid.0);
        }
        bytes
    }

    #[test]
    fn a_tree_that_names_another_again_and_again_ends() {
        let blob = b"content".to_vec();
        let mut oid = Oid::of(Kind::Blob, &blob);
        let mut objects = vec![(3, Vec::new(), blob)];
        let mut mode = "100644";
        for _ in 0..9 {
            let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
            let items: Vec<_> = names.iter().map(|name| (mode, &name[..], oid)).collect();
            let bytes = tree(&items);
            oid = Oid::of(Kind::Tree, &bytes);
            objects.push((2, Vec::new(), bytes));
            mode = "40000";
        }
        let commit = format!("tree {oid}\n").into_bytes();
        let name = Oid::of(Kind::Commit, &commit);
        objects.push((1, Vec::new(), commit));
        let pack = Pack::read(packed(&objects), WORK_MAX).unwrap();
        let written = |files: u64, bytes: u64| {
            let to = tempfile::tempdir().unwrap();
            let error = within(&pack, name, to.path(), files, bytes).unwrap_err();
            error.to_string()
        };
        let files = written(500, 1 << 30);
        assert!(files.contains("more files and folders"), "{files}");
        let bytes = written(u64::MAX, 3 << 10);
        assert!(bytes.contains("unpacks to more than"), "{bytes}");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let blob = b"content".to_vec();
        let oid = Oid::of(Kind::Blob, &blob);
        for (name, is_right) in [("a", true), ("..", false), (".git", false)] {
            let bytes = tree(&[("100644", name, oid)]);
            let root = Oid::of(Kind::Tree, &bytes);
            let commit = format!("tree {root}\n").into_bytes();
            let commit_name = Oid::of(Kind::Commit, &commit);
            let objects = [
                (3, Vec::new(), blob.clone()),
                (2, Vec::new(), bytes),
                (1, Vec::new(), commit),
            ];
            let pack = Pack::read(packed(&objects), WORK_MAX).unwrap();
            let to = tempfile::tempdir().unwrap();
            let written = within(&pack, commit_name, to.path(), 10, 1 << 20);
            assert_eq!(written.is_ok(), is_right, "{name}");
        }
    }
}
