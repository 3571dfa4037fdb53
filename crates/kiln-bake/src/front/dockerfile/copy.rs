//! COPY and ADD: files of the context, a folder, a stage or an image, as a layer of their own.
//!
//! An instruction is read ([`Written`]), what it names is found ([`Planned`]), that is keyed, and placed where no record has the layer.

use std::borrow::Cow;
use std::path::Path;

use kiln_config::dockerfile::{Complaint, Copy, CopySource, Dockerfile, Ignore, Instruction, Text};
use kiln_git::GitSource;
use kiln_oci::{Layer, Tree};

use super::add::{Added, Commit, is_remote, unpacked};
use super::bake::Bake;
use super::copy_from::CopyFrom;
use super::errors::{copy_error, placed};
use super::ignore_file::ignore_of;
use super::key::{CommitKey, Inputs, Origin};
use super::mode::Chmod;
use super::owner::owner;
use super::place::Placing;
use super::schedule::lock;
use super::source::{Found, Root, SourceError};
use super::stage_builder::StageBuilder;
use super::step::Made;
use crate::error::BakeError;
use crate::leaks;
use crate::step::scratch::Scratch;

/// An instruction with its variables replaced.
struct Written<'a> {
    file: &'a Dockerfile,
    copy: &'a Copy,
    is_add: bool,
    /// Absolute. A folder where it ends with `/`.
    to: String,
    owner: Option<String>,
    chmod: Option<(String, Chmod)>,
    exclude: Ignore,
    /// As they were written.
    excluded: Vec<String>,
    paths: Vec<(String, &'a Text)>,
    remotes: Vec<(String, &'a Text)>,
    repositories: Vec<(GitSource, &'a Text)>,
    heredocs: Vec<(String, String)>,
}

/// What an instruction takes, found.
struct Planned<'a> {
    /// Of the step.
    name: String,
    written: Written<'a>,
    from: CopyFrom,
    /// Of folders of the caller's, and what was fetched.
    added: Vec<Added>,
    commits: Vec<Commit>,
    /// With a `/` behind it where only a folder can be meant.
    to: String,
    /// The layer is one of its own, over nothing.
    link: bool,
}

fn complain(file: &Dockerfile, text: &Text, what: String, help: &str) -> BakeError {
    BakeError::Dockerfile(file.error(Complaint::error(text.whole(), what, help)))
}

impl StageBuilder {
    pub(super) fn copy(
        &mut self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        instruction: &Instruction,
        copy: &Copy,
        is_add: bool,
    ) -> Result<Layer, BakeError> {
        let name = self.name(instruction);
        let written = self.written(bake, file, copy, is_add)?;
        let planned = self.planned(bake, written, name)?;
        let origin = planned.origin();
        let commits: Vec<_> = planned.commits.iter().map(Commit::key).collect();
        let times = planned.times();
        let inputs = planned.inputs(&origin, &times, &commits);
        let (layers, date) = (self.stage.layers.clone(), self.stage.date);
        let below: &[Layer] = if planned.needs_below() { &layers } else { &[] };
        bake.step(self.index, &planned.name, below, date, &inputs, || {
            bake.place(self.index, &planned, &layers, date)
        })
    }

    /// Replaces the variables, in the order in which they stand there.
    fn written<'a>(
        &self,
        bake: &Bake<'_>,
        file: &'a Dockerfile,
        copy: &'a Copy,
        is_add: bool,
    ) -> Result<Written<'a>, BakeError> {
        let written_to = self.expand(bake, file, &copy.to)?;
        let mut to = self.absolute(&written_to);
        if written_to == "." || written_to.ends_with("/.") || written_to.ends_with("/..") {
            to.push('/');
        }
        let owner = match &copy.chown {
            Some(text) => Some(self.expand(bake, file, text)?).filter(|owner| !owner.is_empty()),
            None => None,
        };
        let mut chmod = None;
        if let Some(text) = &copy.chmod {
            let mode = self.expand(bake, file, text)?;
            if !mode.is_empty() {
                let parsed = Chmod::parse(&mode).ok_or_else(|| {
                    let what = format!("`{mode}` is not a mode");
                    complain(file, text, what, "write it as 755 or u=rwX,go=rX")
                })?;
                chmod = Some((mode, parsed));
            }
        }
        let mut written = Written {
            file,
            copy,
            is_add,
            to,
            owner,
            chmod,
            exclude: Ignore::default(),
            excluded: Vec::new(),
            paths: Vec::new(),
            remotes: Vec::new(),
            repositories: Vec::new(),
            heredocs: Vec::new(),
        };
        for text in &copy.exclude {
            let pattern = self.expand(bake, file, text)?;
            // As BuildKit has it, paths are below the source, and none of them begins with a `/`.
            if pattern.trim_start_matches(['!', ' ']).starts_with('/') {
                continue;
            }
            written.exclude.add(&pattern).ok_or_else(|| {
                let what = format!("`{pattern}` is no pattern");
                complain(file, text, what, "close its `[`")
            })?;
            written.excluded.push(pattern);
        }
        for source in &copy.sources {
            match source {
                CopySource::Path(text) => {
                    let path = self.expand(bake, file, text)?;
                    written.add_path(path, text)?;
                }
                CopySource::Heredoc(heredoc) => {
                    let mut content = heredoc.chomped();
                    if heredoc.expand {
                        let mut scope = self.scope();
                        content = scope.heredoc(file, &heredoc.content, &content)?;
                        bake.warn(self.index, scope.warnings);
                    }
                    written.heredocs.push((heredoc.name.clone(), content));
                }
            }
        }
        Ok(written)
    }

    /// Finds what is of folders, and fetches what is of the network.
    fn planned<'a>(
        &self,
        bake: &Bake<'_>,
        mut written: Written<'a>,
        name: String,
    ) -> Result<Planned<'a>, BakeError> {
        let Written {
            file, copy, is_add, ..
        } = written;
        let from = match &copy.from {
            None => CopyFrom::Folder {
                path: bake.request.context.to_owned(),
                name: None,
            },
            Some(from) => self.named(bake, file, from, true)?,
        };
        let mut added = Vec::new();
        if let CopyFrom::Folder { path, name: of } = &from {
            let own = match of {
                None => None,
                Some(_) => Some(ignore_of(path).map_err(|reason| copy_error(&name, reason))?),
            };
            let found = written.find(&mut Root {
                path,
                ignore: Some(own.as_ref().unwrap_or(bake.request.ignore)),
                exclude: &written.exclude,
                stat_cache: Some(&mut lock(&bake.stat_cache)),
            })?;
            bake.take(of.as_deref(), &found);
            added.extend(found.into_iter().map(|found| Added {
                found,
                root: path.clone(),
                is_own: true,
                unpack: is_add && copy.unpack != Some(false),
            }));
        }
        let repositories = std::mem::take(&mut written.repositories);
        let commits = self.commits(bake, file, copy, repositories)?;
        let checksum = if commits.is_empty() {
            self.checksum(bake, file, copy, written.remotes.len())?
        } else {
            None
        };
        // What is in the context is unpacked unless it is said, what is fetched only where it is.
        let unpack = is_add && copy.unpack.unwrap_or(written.remotes.is_empty());
        for (url, text) in &written.remotes {
            let source = (url.as_str(), *text);
            added.push(self.fetched(bake, file, source, checksum.as_ref(), unpack)?);
        }
        let to = if copy.parents {
            format!("{}/", written.to.trim_end_matches('/'))
        } else {
            written.to.clone()
        };
        Ok(Planned {
            name,
            // As BuildKit has it, a layer whose modes are changed is not linked.
            link: copy.link && written.chmod.is_none(),
            written,
            from,
            added,
            commits,
            to,
        })
    }
}

impl<'a> Written<'a> {
    /// A source is a path, an address of a file, or one of a repository.
    fn add_path(&mut self, path: String, text: &'a Text) -> Result<(), BakeError> {
        let repository = GitSource::parse(&path).map_err(|problem| {
            let what = format!("`{path}` can't be had: {problem}");
            let help = "write it as https://HOST/PATH.git?ref=BRANCH";
            complain(self.file, text, what, help)
        })?;
        if !self.is_add && (is_remote(&path) || repository.is_some()) {
            return Err(complain(
                self.file,
                text,
                format!("`{path}` is not in the context"),
                "COPY takes files of the context: ADD fetches",
            ));
        }
        match repository {
            Some(source) => self.repositories.push((source, text)),
            None if is_remote(&path) => self.remotes.push((path, text)),
            None => self.paths.push((path, text)),
        }
        Ok(())
    }

    /// What the paths name below `root`.
    fn find(&self, root: &mut Root<'_>) -> Result<Vec<Found>, BakeError> {
        let mut all = Vec::new();
        for (path, text) in &self.paths {
            let found = if self.copy.parents {
                root.find_with_parents(path)
            } else {
                root.find(path)
            };
            all.extend(found.map_err(|error| self.unfound(error, text))?);
        }
        Ok(all)
    }

    fn unfound(&self, error: SourceError, text: &Text) -> BakeError {
        let what = error.to_string();
        match error {
            SourceError::Io { path, source } => BakeError::io(path)(source),
            SourceError::Missing(_) | SourceError::Pattern(_) => {
                let help = match &self.copy.from {
                    None => {
                        "the path is relative to the context, the folder at the end of the command"
                    }
                    Some(_) => "the path is relative to the root of what is copied from",
                };
                complain(self.file, text, what, help)
            }
            SourceError::Ignored(_) => {
                let help = "take it back there with `!`, or copy something else";
                complain(self.file, text, what, help)
            }
        }
    }
}

impl Planned<'_> {
    fn origin(&self) -> Origin<'_> {
        match &self.from {
            CopyFrom::Folder { .. } => {
                let found = self.added.iter().map(|one| Cow::Borrowed(&one.found));
                Origin::Files(found.collect())
            }
            CopyFrom::Stage(stage) => Origin::Layers {
                layers: stage.layers.iter().map(|layer| layer.diff_id).collect(),
                sources: self.written.paths.iter().map(|one| one.0.clone()).collect(),
                exclude: self.written.excluded.clone(),
                parents: self.written.copy.parents,
            },
        }
    }

    /// Those that servers gave their files.
    fn times(&self) -> Vec<i64> {
        let entries = self.added.iter().flat_map(|one| &one.found.entries);
        entries.filter_map(|entry| entry.mtime).collect()
    }

    fn inputs<'k>(
        &'k self,
        origin: &'k Origin<'k>,
        times: &'k [i64],
        commits: &'k [CommitKey<'k>],
    ) -> Inputs<'k> {
        let written = &self.written;
        Inputs::Copy {
            origin,
            heredocs: &written.heredocs,
            to: &self.to,
            owner: written.owner.as_deref(),
            chmod: written.chmod.as_ref().map(|(mode, _)| mode.as_str()),
            link: self.link,
            times,
            git: commits,
            unpack: written.is_add && self.added.iter().any(|one| one.unpack),
        }
    }

    /// What is linked does not depend on what is below, except for the names of its owners.
    fn needs_below(&self) -> bool {
        let is_number = |owner: &String| owner.chars().all(|c| c.is_ascii_digit() || c == ':');
        let named = self.written.owner.as_ref();
        !self.link || named.is_some_and(|owner| !is_number(owner))
    }
}

impl Bake<'_> {
    /// Makes the layer: everything that was found, placed over what is below.
    fn place(
        &self,
        index: usize,
        planned: &Planned<'_>,
        below: &[Layer],
        date: i64,
    ) -> Result<Made, BakeError> {
        let Planned {
            name,
            written,
            from,
            to,
            ..
        } = planned;
        let scratch = Scratch::new(self.request.work)?;
        let view = self.view(below, &scratch.folder("look")?)?;
        let empty = scratch.folder("empty")?;
        let owner = match &written.owner {
            None => None,
            Some(text) => {
                Some(owner(text, view.path()).map_err(|reason| copy_error(name, reason))?)
            }
        };
        let mut placing = Placing {
            view: if planned.link { &empty } else { view.path() },
            owner,
            chmod: written.chmod.as_ref().map(|(_, chmod)| chmod),
            date,
            tree: Tree::new(),
            replaced: Vec::new(),
        };
        // Mounted until the layer is written, since its files are read from it.
        let mounted;
        match from {
            CopyFrom::Folder { .. } => self.place_added(&mut placing, planned, &scratch)?,
            CopyFrom::Stage(stage) => {
                mounted = self.view(&stage.layers, &scratch.folder("from")?)?;
                let mut root = Root {
                    path: mounted.path(),
                    ignore: None,
                    exclude: &written.exclude,
                    stat_cache: None,
                };
                for one in &written.find(&mut root)? {
                    placing
                        .put(one, mounted.path(), to, &|_| None)
                        .map_err(|error| placed(name, error))?;
                }
            }
        }
        self.place_commits(&mut placing, planned, &scratch)?;
        for (name, content) in &written.heredocs {
            placing
                .bytes(name, content.clone(), to)
                .map_err(|error| placed(name, error))?;
        }
        if let Some(path) = placing.replaced.first() {
            let warning = Complaint::warning(
                "SeveralFilesToOne",
                written.copy.to.whole(),
                format!(
                    "of several files, `/{}` is only the last one",
                    path.display()
                ),
                "end the destination with `/`, so that it is a folder",
            );
            // One of an ONBUILD has no place in this file.
            if std::ptr::eq(written.file, self.request.dockerfile) {
                self.warn(index, vec![warning]);
            }
        }
        let mut tree = placing.tree;
        tree.clamp_mtime(date);
        Ok(Made {
            // A stage or a cache may hold what a RUN was given.
            given: leaks::given(&tree, self.request.granted.secrets.values())?,
            layer: self.add(&tree)?,
            used_network: false,
        })
    }

    /// Files of folders and of the network; archives are unpacked where that is wanted.
    fn place_added(
        &self,
        placing: &mut Placing<'_>,
        planned: &Planned<'_>,
        scratch: &Scratch,
    ) -> Result<(), BakeError> {
        let Planned { name, to, .. } = planned;
        for one in &planned.added {
            if unpacked(placing, one, scratch, name, to)? {
                continue;
            }
            let known = |path: &Path| {
                let path = one.is_own.then(|| one.root.join(path))?;
                lock(&self.stat_cache).known_file(&path)
            };
            placing
                .put(&one.found, &one.root, to, &known)
                .map_err(|error| placed(name, error))?;
        }
        Ok(())
    }

    /// The files of repositories. Their folders last as long as `scratch`.
    fn place_commits(
        &self,
        placing: &mut Placing<'_>,
        planned: &Planned<'_>,
        scratch: &Scratch,
    ) -> Result<(), BakeError> {
        let Planned { name, to, .. } = planned;
        for (index, commit) in planned.commits.iter().enumerate() {
            let folder = scratch.folder(&format!("git-{index}"))?;
            commit
                .source
                .check_out(&commit.found, commit.keep, &folder, self.access())?;
            let mut root = Root {
                path: &folder,
                ignore: None,
                exclude: &planned.written.exclude,
                stat_cache: None,
            };
            for one in root.find(".").map_err(|error| error.of(name))? {
                placing
                    .put(&one, &folder, to, &|_| None)
                    .map_err(|error| placed(name, error))?;
            }
        }
        Ok(())
    }
}
