//! What the keys of a Dockerfile's steps are made of.

use std::borrow::Cow;

use kiln_model::Digest;
use serde::Serialize;

use super::source::Found;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Inputs<'a> {
    Run {
        argv: &'a [String],
        env: &'a [(String, String)],
        user: &'a str,
        workdir: &'a str,
        script: Option<&'a str>,
        mounts: Vec<MountKey<'a>>,
        network: &'a Network,
        privileged: bool,
    },
    Copy {
        origin: &'a Origin<'a>,
        heredocs: &'a [(String, String)],
        to: &'a str,
        owner: Option<&'a str>,
        chmod: Option<&'a str>,
        link: bool,
        /// Those that servers gave their files.
        #[serde(skip_serializing_if = "<[i64]>::is_empty")]
        times: &'a [i64],
        /// The commits and folders of repositories.
        #[serde(skip_serializing_if = "<[CommitKey]>::is_empty")]
        git: &'a [CommitKey<'a>],
        /// Archives are unpacked.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        unpack: bool,
    },
    Folder {
        path: &'a str,
        owner: &'a str,
    },
}

/// What a COPY takes.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin<'a> {
    /// Files of a folder, each with its digest.
    Files(Vec<Cow<'a, Found>>),
    /// A stage's or an image's, whose layers say all.
    Layers {
        layers: Vec<Digest>,
        sources: Vec<String>,
        exclude: Vec<String>,
        parents: bool,
    },
}

/// What of a mount is in the key of its step: secrets and caches by their names alone.
#[derive(Serialize)]
pub(super) struct MountKey<'a> {
    pub(super) kind: &'static str,
    pub(super) target: Option<&'a str>,
    pub(super) writable: bool,
    pub(super) origin: Option<&'a Origin<'a>>,
    pub(super) source: Option<&'a str>,
    pub(super) id: Option<String>,
    pub(super) env: Option<&'a str>,
    pub(super) size: Option<u64>,
    pub(super) owner: (Option<u32>, Option<u32>, Option<u32>),
}

/// What of a commit is in the key: it says all but which folder is taken, and what `.git` has besides.
#[derive(Serialize)]
pub(super) struct CommitKey<'a> {
    pub(super) commit: String,
    pub(super) folder: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) without_submodules: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<(String, Option<&'a str>, Option<String>)>,
}

/// What of a network a RUN has.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Network {
    None,
    Default,
    Host,
}
