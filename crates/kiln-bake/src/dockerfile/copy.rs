//! COPY and ADD: files of the context, a folder, a stage or an image, as a layer of their own.

use std::borrow::Cow;
use std::path::Path;

use kiln_config::dockerfile::{Complaint, Copy, CopySource, Dockerfile, Ignore, Instruction, Text};
use kiln_git::GitSource;
use kiln_oci::{Layer, Tree};

use super::added::{Added, Commit, is_remote, unpacked};
use super::bake::Bake;
use super::errors::{copy_error, placed};
use super::from::CopyFrom;
use super::ignore_file::ignore_of;
use super::key::{Inputs, Origin};
use super::mode::Chmod;
use super::owner::owner;
use super::place::Placing;
use super::schedule::lock;
use super::source::{Root, SourceError};
use super::step::Made;
use super::walk::Walk;
use crate::error::BakeError;
use crate::leaks;
use crate::scratch::Scratch;

impl Walk {
    pub(super) fn copy(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
        copy: &Copy,
        is_add: bool,
    ) -> Result<Layer, BakeError> {
        let complain = |text: &Text, what: String, help: &str| {
            BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
        };
        let name = self.name(instruction);
        let written_to = self.expand(bake, file, &copy.to)?;
        let mut to = self.absolute(&written_to);
        if written_to == "." || written_to.ends_with("/.") || written_to.ends_with("/..") {
            to.push('/');
        }
        let owner_text = match &copy.chown {
            Some(text) => Some(self.expand(bake, file, text)?).filter(|owner| !owner.is_empty()),
            None => None,
        };
        let chmod_text = match &copy.chmod {
            Some(text) => {
                Some((self.expand(bake, file, text)?, text)).filter(|(mode, _)| !mode.is_empty())
            }
            None => None,
        };
        let chmod = match &chmod_text {
            Some((mode, text)) => Some(Chmod::parse(mode).ok_or_else(|| {
                complain(
                    text,
                    format!("`{mode}` is not a mode"),
                    "write it as 755 or u=rwX,go=rX",
                )
            })?),
            None => None,
        };
        let mut exclude = Ignore::default();
        let mut excluded = Vec::new();
        for text in &copy.exclude {
            let pattern = self.expand(bake, file, text)?;
            // As BuildKit has it, paths are below the source, and none of them begins with a `/`.
            if pattern.trim_start_matches(['!', ' ']).starts_with('/') {
                continue;
            }
            exclude.add(&pattern).ok_or_else(|| {
                complain(text, format!("`{pattern}` is no pattern"), "close its `[`")
            })?;
            excluded.push(pattern);
        }
        let mut paths = Vec::new();
        let mut remotes = Vec::new();
        let mut repositories = Vec::new();
        let mut heredocs = Vec::new();
        for source in &copy.sources {
            match source {
                CopySource::Path(text) => {
                    let path = self.expand(bake, file, text)?;
                    let repository = GitSource::parse(&path).map_err(|problem| {
                        let what = format!("`{path}` can't be had: {problem}");
                        complain(text, what, "write it as https://HOST/PATH.git?ref=BRANCH")
                    })?;
                    if !is_add && (is_remote(&path) || repository.is_some()) {
                        return Err(complain(
                            text,
                            format!("`{path}` is not in the context"),
                            "COPY takes files of the context: ADD fetches",
                        ));
                    }
                    if let Some(source) = repository {
                        repositories.push((source, text));
                        continue;
                    }
                    if is_remote(&path) {
                        remotes.push((path, text));
                        continue;
                    }
                    paths.push((path, text));
                }
                CopySource::Heredoc(heredoc) => {
                    let mut content = heredoc.chomped();
                    if heredoc.expand {
                        let mut scope = self.scope();
                        content = scope.heredoc(file, &heredoc.content, &content)?;
                        bake.warn(self.index, scope.warnings);
                    }
                    heredocs.push((heredoc.name.clone(), content));
                }
            }
        }
        let from = self.copied_from(bake, file, copy)?;
        let unfound = |error: SourceError, text: &Text| match error {
            SourceError::Io { path, source } => BakeError::io(path)(source),
            error @ (SourceError::Missing(_) | SourceError::Pattern(_)) => {
                let help = match &copy.from {
                    None => {
                        "the path is relative to the context, the folder at the end of the command"
                    }
                    Some(_) => "the path is relative to the root of what is copied from",
                };
                complain(text, error.to_string(), help)
            }
            error @ SourceError::Ignored(_) => complain(
                text,
                error.to_string(),
                "take it back there with `!`, or copy something else",
            ),
        };
        let find = |root: &mut Root<'_>| -> Result<Vec<_>, BakeError> {
            let mut all = Vec::new();
            for (path, text) in &paths {
                if copy.parents {
                    all.extend(
                        root.find_with_parents(path)
                            .map_err(|error| unfound(error, text))?,
                    );
                } else {
                    all.extend(root.find(path).map_err(|error| unfound(error, text))?);
                }
            }
            Ok(all)
        };
        let ignore_of_folder;
        let mut found = Vec::new();
        if let CopyFrom::Folder { path, name: of } = &from {
            found = find(&mut Root {
                path,
                ignore: Some(if of.is_none() {
                    bake.request.ignore
                } else {
                    ignore_of_folder =
                        ignore_of(path).map_err(|reason| copy_error(&name, reason))?;
                    &ignore_of_folder
                }),
                exclude: &exclude,
                seen: Some(&mut lock(&bake.seen)),
            })?;
            bake.take(of.as_deref(), &found);
        }
        // What is in the context is unpacked unless it is said, what is fetched only where it is.
        let unpack = is_add && copy.unpack.unwrap_or(remotes.is_empty());
        let commits = self.commits(bake, file, copy, repositories)?;
        let checksum = if commits.is_empty() {
            self.checksum(bake, file, copy, remotes.len())?
        } else {
            None
        };
        let mut fetched = Vec::new();
        for (url, text) in &remotes {
            let source = (url.as_str(), *text);
            fetched.push(self.fetched(bake, file, source, checksum.as_ref(), unpack)?);
        }
        let added: Vec<Added> = match &from {
            CopyFrom::Folder { path, .. } => {
                let own = found.into_iter().map(|found| Added {
                    found,
                    root: path.clone(),
                    is_own: true,
                    unpack: is_add && copy.unpack != Some(false),
                });
                own.chain(fetched).collect()
            }
            CopyFrom::Stage(_) => fetched,
        };
        let origin = match &from {
            CopyFrom::Folder { .. } => {
                Origin::Files(added.iter().map(|one| Cow::Borrowed(&one.found)).collect())
            }
            CopyFrom::Stage(stage) => Origin::Layers {
                layers: stage.layers.iter().map(|layer| layer.diff_id).collect(),
                sources: paths.iter().map(|(path, _)| path.clone()).collect(),
                exclude: excluded,
                parents: copy.parents,
            },
        };
        let to_folder = if copy.parents {
            format!("{}/", to.trim_end_matches('/'))
        } else {
            to.clone()
        };
        // As BuildKit has it, a layer whose modes are changed is not linked.
        let link = copy.link && chmod.is_none();
        let entries = added.iter().flat_map(|one| &one.found.entries);
        let times: Vec<i64> = entries.filter_map(|entry| entry.mtime).collect();
        let inputs = Inputs::Copy {
            origin: &origin,
            heredocs: &heredocs,
            to: &to_folder,
            owner: owner_text.as_deref(),
            chmod: chmod_text.as_ref().map(|(mode, _)| mode.as_str()),
            link,
            times: &times,
            git: &commits.iter().map(Commit::key).collect::<Vec<_>>(),
            unpack: is_add && added.iter().any(|one| one.unpack),
        };
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        // What is linked does not depend on what is below, except for the names of its owners.
        let named = owner_text
            .as_ref()
            .is_some_and(|owner| !owner.chars().all(|c| c.is_ascii_digit() || c == ':'));
        let below: &[Layer] = if link && !named { &[] } else { &layers };
        bake.step(self.index, &name, below, date, &inputs, || {
            let scratch = Scratch::new(bake.request.work)?;
            let view = bake.view(&layers, &scratch.folder("look")?)?;
            let empty = scratch.folder("empty")?;
            let owner = match &owner_text {
                None => None,
                Some(text) => {
                    Some(owner(text, view.path()).map_err(|reason| copy_error(&name, reason))?)
                }
            };
            let mut placing = Placing {
                view: if link { &empty } else { view.path() },
                owner,
                chmod: chmod.as_ref(),
                date,
                tree: Tree::new(),
                replaced: Vec::new(),
            };
            // Mounted until the layer is written, since its files are read from it.
            let mounted;
            match (&origin, &from) {
                (Origin::Files(_), CopyFrom::Folder { .. }) => {
                    for one in &added {
                        if unpacked(&mut placing, one, &scratch, &name, &to_folder)? {
                            continue;
                        }
                        let known = |path: &Path| {
                            let path = one.is_own.then(|| one.root.join(path))?;
                            lock(&bake.seen).known(&path)
                        };
                        placing
                            .put(&one.found, &one.root, &to_folder, &known)
                            .map_err(|error| placed(&name, error))?;
                    }
                }
                (_, CopyFrom::Stage(stage)) => {
                    mounted = bake.view(&stage.layers, &scratch.folder("from")?)?;
                    let mut root = Root {
                        path: mounted.path(),
                        ignore: None,
                        exclude: &exclude,
                        seen: None,
                    };
                    for one in &find(&mut root)? {
                        placing
                            .put(one, mounted.path(), &to_folder, &|_| None)
                            .map_err(|error| placed(&name, error))?;
                    }
                }
                (Origin::Layers { .. }, CopyFrom::Folder { .. }) => {}
            }
            for (index, commit) in commits.iter().enumerate() {
                let folder = scratch.folder(&format!("git-{index}"))?;
                commit
                    .source
                    .check_out(&commit.found, commit.keep, &folder, bake.access())?;
                let mut root = Root {
                    path: &folder,
                    ignore: None,
                    exclude: &exclude,
                    seen: None,
                };
                for one in root.find(".").map_err(|error| error.of(&name))? {
                    placing
                        .put(&one, &folder, &to_folder, &|_| None)
                        .map_err(|error| placed(&name, error))?;
                }
            }
            for (name, content) in &heredocs {
                placing
                    .bytes(name, content.clone(), &to_folder)
                    .map_err(|error| placed(name, error))?;
            }
            if let Some(path) = placing.replaced.first() {
                let warning = Complaint::warning(
                    "SeveralFilesToOne",
                    copy.to.whole(),
                    format!(
                        "of several files, `/{}` is only the last one",
                        path.display()
                    ),
                    "end the destination with `/`, so that it is a folder",
                );
                // One of an ONBUILD has no place in this file.
                if std::ptr::eq(file, bake.request.dockerfile) {
                    bake.warn(self.index, vec![warning]);
                }
            }
            let mut tree = placing.tree;
            tree.clamp_mtime(date);
            Ok(Made {
                // A stage or a cache may hold what a RUN was given.
                given: leaks::given(&tree, bake.request.granted.secrets.values())?,
                layer: bake.add(&tree)?,
                used_network: false,
            })
        })
    }

    fn copied_from(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        copy: &Copy,
    ) -> Result<CopyFrom, BakeError> {
        match &copy.from {
            None => Ok(CopyFrom::Folder {
                path: bake.request.context.to_owned(),
                name: None,
            }),
            Some(name) => self.named(bake, file, name, true),
        }
    }
}
