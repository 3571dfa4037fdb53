//! What a Dockerfile is baked with, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_config::dockerfile::{Complaint, Dockerfile, Ignore, LintInputs};
use kiln_model::{Digest, TestSpec};
use kiln_oci::ImageConfig;
use kiln_registry::Registries;

use super::context_folder::ContextRepository;
use crate::arch;
use crate::commit::{Checkout, CommitInfo};
use crate::context::listing::Listings;
use crate::deferred::Deferred;
use crate::granted::Granted;
use crate::progress::StepReport;
use crate::record::provenance::ResolvedBase;

pub struct DockerfileRequest<'a> {
    pub dockerfile: &'a Dockerfile,
    pub context: &'a Path,
    pub ignore: &'a Ignore,
    pub tag: Tagging<'a>,
    /// All of them have to pass before the image gets its tag.
    pub tests: &'a [TestSpec],
    pub build_args: &'a BTreeMap<String, String>,
    /// None: the last stage.
    pub target: Option<&'a str>,
    /// What a name of an image in the Dockerfile means: a tag or digest of the store, an archive (`oci:DIR` and the like),
    /// or another name.
    pub bases: &'a BTreeMap<String, String>,
    pub registries: &'a Registries,
    /// Those of `bases` that are in place of a stage of their name, too.
    pub named_images: &'a BTreeSet<String>,
    /// Folders that the Dockerfile knows by a name.
    pub contexts: &'a BTreeMap<String, PathBuf>,
    /// Where contexts are of repositories of the network: by name, that of the context itself with an empty one.
    pub repositories: &'a BTreeMap<String, ContextRepository>,
    /// Secrets and the like, and what a RUN may do.
    pub granted: &'a Granted,
    /// What looks secret and is none, as `RULE:PLACE`.
    pub allow_leaks: &'a [String],
    /// Has to be this machine's.
    pub platform: Option<&'a str>,
    /// Does every step anew.
    pub no_cache: bool,
    /// For what is made on the way; on the store's file system.
    pub work: &'a Path,
    /// Where the Dockerfile is in a repository, when no definition names it.
    pub checkout: Deferred<'a, Checkout>,
    /// Of the context's folders, with whoever looks through them beside the bake.
    pub listings: &'a Listings,
    pub move_clock: Option<OtherClock<'a>>,
}

/// A clock for the steps' programs, to find out what depends on it.
#[derive(Clone, Copy, Debug)]
pub struct OtherClock<'a> {
    /// Seconds that it is moved by.
    pub moved: i32,
    /// Steps, by name, that have the machine's all the same: what is fetched is signed for a time.
    pub not_for: &'a BTreeSet<String>,
}

impl DockerfileRequest<'_> {
    /// What the Dockerfile is warned of before anything is baked.
    pub fn warnings(&self) -> Vec<Complaint> {
        let file = self.dockerfile;
        let last = file.stages.len() - 1;
        let target = self
            .target
            .map_or(Some(last), |name| file.stage(name, last + 1));
        file.lint(&LintInputs {
            build_args: self.build_args,
            target,
            arch: arch::arch(),
            ignore: self.ignore,
            base: None,
        })
    }
}

/// The tag that the image gets.
#[derive(Clone, Copy, Debug)]
pub enum Tagging<'a> {
    /// Which may be taken by another image, and is then an error.
    As(&'a str),
    /// One of a definition's.
    Version {
        image: &'a str,
        version: &'a str,
        commit: Deferred<'a, CommitInfo>,
    },
}

impl<'a> Tagging<'a> {
    /// What the image is called while it has no tag.
    pub(super) fn name(&self) -> &'a str {
        match self {
            Self::As(name) | Self::Version { image: name, .. } => name,
        }
    }

    /// What all of its versions are called: each tag is given once.
    pub(super) fn versions(&self) -> &'a str {
        let name = self.name();
        // What is before the last `/` may be a host with a port.
        let path = name.rfind('/').map_or(0, |at| at + 1);
        match name[path..].find(':') {
            Some(at) => &name[..path + at],
            None => name,
        }
    }

    pub(super) fn commit(&self) -> Option<CommitInfo> {
        match self {
            Self::As(_) => None,
            Self::Version { commit, .. } => commit.get(),
        }
    }

    /// What is written before the excuse of a leak.
    pub(super) fn excuse(&self) -> &'static str {
        match self {
            Self::As(_) => "--allow-leak",
            Self::Version { .. } => "image { allow_leak = [",
        }
    }
}

pub struct BakedDockerfile {
    pub tag: String,
    pub digest: Digest,
    pub steps: Vec<StepReport>,
    pub config: ImageConfig,
    /// In the order in which they were found.
    pub warnings: Vec<Complaint>,
    /// The images that it stands on or took from, by name.
    pub bases: Vec<ResolvedBase>,
    /// Steps that used the network, now or when they were cached: they may give something else another day.
    pub networked: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_registry_is_no_version() {
        for (tag, versions) in [
            ("app:1", "app"),
            ("app", "app"),
            ("localhost:5000/a:1", "localhost:5000/a"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
        ] {
            assert_eq!(Tagging::As(tag).versions(), versions);
        }
    }
}
