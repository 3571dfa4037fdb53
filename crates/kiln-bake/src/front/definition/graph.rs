//! The steps of an image, and what their keys are made of. Pure.
//!
//! A key is the digest of everything that the step's result depends on: the format of keys, the layers below, the step itself and the
//! digests of the files that it takes. What is not in it (the commit, the machine with its mirror, the day) changes no image.

use kiln_model::{CanonicalError, DebianSpec, Digest, ImageSpec, UserSpec};
use serde::Serialize;

use crate::debian::lock::{ImageLock, LockedPackage};
use crate::step::key::digest_of;

/// Changed whenever the same inputs would give another result.
const FORMAT: u32 = 6;

/// What `debian.sources` is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AptSources {
    /// The addresses, each with its suites.
    pub(crate) sources: Vec<(String, String)>,
    pub(crate) components: Vec<String>,
    /// As they were at a time: never out of date.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) frozen: bool,
    /// The definition's own keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keyring: Option<Digest>,
}

/// What a step does, with all of its inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// The base.
    Debian {
        suite: String,
        arch: String,
        date: i64,
        packages: Vec<(String, String, Digest)>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        slim: bool,
    },
    /// More packages, over a base.
    Packages {
        packages: Vec<(String, String, Digest)>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        slim: bool,
    },
    /// Where the image's apt looks for packages.
    AptSources(AptSources),
    /// These packages and what they need, taken out of the image so far, which is not part of what is baked.
    Minimal {
        only: Vec<String>,
    },
    Users {
        users: Vec<UserSpec>,
    },
    Copy {
        to: String,
        owner: Option<String>,
        files: Vec<CopiedFile>,
    },
    Run {
        command: String,
        user: Option<String>,
        workdir: Option<String>,
        env: Vec<(String, String)>,
    },
}

/// One path of a copy, relative to its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CopiedFile {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) kind: CopiedKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CopiedKind {
    Folder,
    File { digest: Digest },
    Link { target: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) work: Work,
}

impl Step {
    /// The key of this step over `below`, the diff ids of the layers under it.
    pub(crate) fn key(&self, below: &[Digest], date: i64) -> Result<Digest, CanonicalError> {
        #[derive(Serialize)]
        struct Key<'a> {
            format: u32,
            compressor: String,
            tar: u32,
            below: &'a [Digest],
            date: i64,
            work: &'a Work,
        }
        let key = Key {
            format: FORMAT,
            compressor: kiln_oci::compressor(),
            tar: kiln_oci::tar::VERSION,
            below,
            date,
            work: &self.work,
        };
        digest_of(&key)
    }
}

/// The steps of Debian packages, which an image without a base begins with.
pub(crate) fn debian(
    debian: &DebianSpec,
    locked: &ImageLock,
    apt: Option<AptSources>,
) -> Vec<Step> {
    let named = |packages: &[LockedPackage]| {
        let one = |package: &LockedPackage| {
            let LockedPackage {
                name,
                version,
                sha256,
                ..
            } = package;
            (name.clone(), version.clone(), *sha256)
        };
        packages.iter().map(one).collect()
    };
    let (base, rest) = locked.split();
    let mut steps = vec![Step {
        name: format!("debian {}", debian.suite),
        work: Work::Debian {
            suite: debian.suite.clone(),
            arch: locked.arch.clone(),
            date: locked.date,
            packages: named(base),
            slim: debian.slim,
        },
    }];
    if !rest.is_empty() {
        steps.push(Step {
            name: format!("packages {}", locked.requested.join(" ")),
            work: Work::Packages {
                packages: named(rest),
                slim: debian.slim,
            },
        });
    }
    // A step of its own: another mirror is no reason to install anything anew.
    steps.extend(apt.map(|apt| Step {
        name: "apt sources".to_owned(),
        work: Work::AptSources(apt),
    }));
    if !debian.essential {
        steps.push(Step {
            name: format!("only {}", locked.requested.join(" ")),
            work: Work::Minimal {
                only: locked.requested.clone(),
            },
        });
    }
    steps
}

/// The steps of an image of the definition language that are its own, in order. `copies`: what each `copy` takes, in the
/// definition's order.
pub(crate) fn steps(image: &ImageSpec, copies: Vec<Vec<CopiedFile>>) -> Vec<Step> {
    let mut steps = Vec::new();
    if !image.users.is_empty() {
        let names: Vec<_> = image.users.iter().map(|user| user.name.as_str()).collect();
        steps.push(Step {
            name: format!("user {}", names.join(" ")),
            work: Work::Users {
                users: image.users.clone(),
            },
        });
    }
    for (copy, files) in image.copies.iter().zip(copies) {
        steps.push(Step {
            name: format!("copy {} {}", copy.from, copy.to),
            work: Work::Copy {
                to: copy.to.clone(),
                owner: copy.owner.clone(),
                files,
            },
        });
    }
    for command in &image.run {
        steps.push(Step {
            name: format!("run {command}"),
            work: Work::Run {
                command: command.clone(),
                user: image.run_as.clone(),
                workdir: image.workdir.clone(),
                env: image
                    .env
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
            },
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_each_input_and_with_nothing_else() {
        let run = |command: &str| Step {
            name: "not part of it".into(),
            work: Work::Run {
                command: command.into(),
                user: None,
                workdir: None,
                env: Vec::new(),
            },
        };
        let below = [Digest::of(b"base")];
        let key = run("true").key(&below, 1).unwrap();
        assert_eq!(
            Step {
                name: "other".into(),
                ..run("true")
            }
            .key(&below, 1)
            .unwrap(),
            key
        );
        let others = [
            run("false").key(&below, 1),
            run("true").key(&[], 1),
            run("true").key(&below, 2),
        ];
        assert!(others.into_iter().all(|other| other.unwrap() != key));
    }
}
