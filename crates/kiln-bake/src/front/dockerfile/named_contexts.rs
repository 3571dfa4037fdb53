//! Contexts: what of them was taken, which their provenance says, and those that stand where an image stands.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_config::dockerfile::{Complaint, Ignore};
use kiln_model::Digest;
use kiln_oci::{RunConfig, Tree, same_name};
use sha2::{Digest as _, Sha256};

use super::bake::Bake;
use super::errors::{at, copy_error, placed};
use super::ignore_file::ignore_of;
use super::key::{Inputs, Origin};
use super::place::Placing;
use super::request::DockerfileRequest;
use super::schedule::lock;
use super::source::{Found, Root, TakenKind};
use super::stage::{Stage, created, scratch};
use super::step::Made;
use crate::error::BakeError;
use crate::leaks;
use crate::record::provenance::ContextMaterial;
use crate::step::key::digest_of;
use crate::step::scratch::Scratch;

impl Bake<'_> {
    /// The folder that `--build-context` calls so, in any of the ways in which an image's name is written.
    pub(super) fn context_named(&self, name: &str) -> Option<(&str, &Path)> {
        let mut all = self.request.contexts.iter();
        all.find(|(known, _)| same_name(known, name))
            .map(|(known, path)| (known.as_str(), path.as_path()))
    }

    /// Notes what was taken of a context.
    pub(super) fn take(&self, name: Option<&str>, found: &[Found]) {
        let name = name.unwrap_or_default();
        let digests: Vec<Digest> = found.iter().map(digest_of_found).collect();
        let mut notes = self.notes();
        notes
            .taken
            .entry(name.to_owned())
            .or_default()
            .extend(digests);
    }

    /// What BuildKit makes of `FROM NAME` where NAME is a folder: its files as a layer, and no configuration.
    pub(super) fn folder_stage(
        &self,
        index: usize,
        name: &str,
        path: &Path,
        span: &Range<usize>,
    ) -> Result<Stage, BakeError> {
        let mut stage = scratch();
        stage.config.config = RunConfig {
            env: std::mem::take(&mut stage.config.config.env),
            working_dir: "/".to_owned(),
            ..RunConfig::default()
        };
        if let Some(date) = self.date {
            stage.date = date;
            stage.config.created = Some(created(date));
        }
        let step = format!("context {name}");
        let made = self.folder_layer(index, &step, (name, path), stage.date);
        let layer = made.map_err(|error| {
            let place = Complaint::error(span.clone(), "this context can't be used", "");
            at(self.request.dockerfile.error(place), error)
        })?;
        stage.layers.push(layer);
        Ok(stage)
    }

    fn folder_layer(
        &self,
        index: usize,
        step: &str,
        (name, path): (&str, &Path),
        date: i64,
    ) -> Result<kiln_oci::Layer, BakeError> {
        let ignore = ignore_of(path).map_err(|reason| copy_error(step, reason))?;
        let exclude = Ignore::default();
        // What was seen is let go before the step asks for it again.
        let found = Root {
            path,
            ignore: Some(&ignore),
            exclude: &exclude,
            stat_cache: Some(&mut lock(&self.stat_cache)),
        }
        .find(".")
        .map_err(|error| error.of(step))?;
        self.take(Some(name), &found);
        let origin = Origin::Files(found.iter().map(Cow::Borrowed).collect());
        let inputs = Inputs::Copy {
            origin: &origin,
            heredocs: &[],
            to: "/",
            owner: None,
            chmod: None,
            link: false,
            times: &[],
            git: &[],
            unpack: false,
        };
        self.step(index, step, &[], date, &inputs, || {
            let scratch = Scratch::new(self.request.work)?;
            let mut placing = Placing {
                view: &scratch.folder("empty")?,
                owner: None,
                chmod: None,
                date,
                tree: Tree::new(),
                replaced: Vec::new(),
            };
            let known = |inside: &Path| lock(&self.stat_cache).known_file(&path.join(inside));
            for one in &found {
                placing
                    .put(one, path, "/", &known)
                    .map_err(|error| placed(step, error))?;
            }
            let mut tree = placing.tree;
            tree.clamp_mtime(date);
            Ok(Made {
                given: leaks::given(&tree, self.request.granted.secrets.values())?,
                layer: self.add(&tree)?,
                used_network: false,
            })
        })
    }
}

/// What the contexts are known by: a repository's commit, or a digest of what was taken. `is_committed`: the commit that the caller
/// knows says what is in the one without a name.
pub(super) fn materials(
    request: &DockerfileRequest<'_>,
    is_committed: bool,
    taken: &BTreeMap<String, BTreeSet<Digest>>,
) -> Result<Vec<ContextMaterial>, BakeError> {
    let mut all = Vec::new();
    for (name, repository) in request.repositories {
        all.push(ContextMaterial {
            name: called(name),
            uri: Some(repository.url.clone()),
            kind: "gitCommit",
            digest: repository.commit.clone(),
        });
    }
    for (name, digests) in taken {
        if request.repositories.contains_key(name) || (is_committed && name.is_empty()) {
            continue;
        }
        all.push(ContextMaterial {
            name: called(name),
            uri: None,
            kind: "kilnFiles",
            digest: digest_of(digests)?.hex(),
        });
    }
    Ok(all)
}

fn called(name: &str) -> String {
    if name.is_empty() {
        "context".to_owned()
    } else {
        format!("context {name}")
    }
}

/// Of each path with all that a layer has of it. Ten thousand are usual, so that this is no JSON: every part that may have any length
/// has it before it.
fn digest_of_found(found: &Found) -> Digest {
    fn put(hasher: &mut Sha256, bytes: &[u8]) {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    let mut hasher = Sha256::new();
    put(&mut hasher, found.at.as_os_str().as_bytes());
    put(&mut hasher, found.name.as_bytes());
    hasher.update([found.is_folder.into()]);
    for entry in &found.entries {
        put(&mut hasher, entry.path.as_os_str().as_bytes());
        hasher.update(entry.mode.to_le_bytes());
        match entry.owner {
            Some((user, group)) => {
                hasher.update([1]);
                hasher.update(user.to_le_bytes());
                hasher.update(group.to_le_bytes());
            }
            None => hasher.update([0]),
        }
        hasher.update((entry.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &entry.xattrs {
            put(&mut hasher, name);
            put(&mut hasher, value);
        }
        match &entry.kind {
            TakenKind::Folder => hasher.update([0]),
            TakenKind::File { digest: None } => hasher.update([1]),
            TakenKind::File {
                digest: Some(digest),
            } => {
                hasher.update([2]);
                hasher.update(digest.as_bytes());
            }
            TakenKind::Link { target } => {
                hasher.update([3]);
                put(&mut hasher, target.as_os_str().as_bytes());
            }
            TakenKind::Fifo => hasher.update([4]),
        }
        match &entry.same_as {
            Some(path) => {
                hasher.update([1]);
                put(&mut hasher, path.as_os_str().as_bytes());
            }
            None => hasher.update([0]),
        }
    }
    Digest::from_sha256(hasher.finalize().into())
}
