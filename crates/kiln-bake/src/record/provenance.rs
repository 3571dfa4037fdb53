//! Where an image came from: an in-toto statement with SLSA's provenance (version 1) as its predicate.
//!
//! It has no time of day and does not say which steps were cached, so that the same bake again says the same and is kept once.

use std::collections::{BTreeMap, BTreeSet};

use kiln_model::{CanonicalError, Digest, ImageSpec, canonical_json};
use serde_json::{Value, json};

use crate::commit::{Checkout, CommitInfo};
use crate::debian::lock::ImageLock;
use crate::granted::{Granted, PROXIES};
use crate::image_tests::Passed;
use crate::leaks;
use crate::record::sbom::purl;

pub const MEDIA_IN_TOTO: &str = "application/vnd.in-toto+json";

/// A step with what it is known by.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) key: Digest,
    /// Of its layer.
    pub(crate) diff_id: Digest,
}

pub(crate) fn statement(
    image: &ImageSpec,
    digest: &Digest,
    commit: Option<&CommitInfo>,
    locked: &ImageLock,
    steps: &[Done],
    tests: &[Passed],
) -> Result<Vec<u8>, CanonicalError> {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let mut fetched: Vec<Value> = commit
        .iter()
        .map(|commit| json!({"name": "definition", "digest": {"gitCommit": commit.sha}}))
        .collect();
    fetched.extend(locked.packages.iter().map(|package| {
        json!({
            "name": package.path,
            "uri": purl(&package.name, &package.version, &package.arch, None),
            "digest": {"sha256": package.sha256.hex()},
        })
    }));
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| json!({"name": step.name, "key": step.key, "layer": step.diff_id}))
        .collect();
    let tests: Vec<Value> = tests
        .iter()
        .map(|test| json!({"name": test.name, "digest": test.digest}))
        .collect();
    let lock = locked.digest()?;
    canonical_json(&json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image.name, "digest": {"sha256": digest.hex()}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": format!("{repository}/bake/v1"),
                "externalParameters": {
                    "image": image.name,
                    "version": image.version,
                    "commit": commit.map(|commit| &commit.sha),
                    "definition": commit.map(|commit| &commit.definition),
                    // What no commit has is as little to be had again as what differs from one.
                    "dirty": commit.is_none_or(|commit| commit.dirty),
                },
                "internalParameters": {"lock": lock, "steps": steps, "tests": tests},
                "resolvedDependencies": fetched,
            },
            "runDetails": {
                "builder": {
                    "id": repository,
                    "version": {"kiln": env!("CARGO_PKG_VERSION")},
                },
            },
        },
    }))
}

/// Whether kiln wrote the statement: what others attach to an image may be of the same type.
pub fn is_own_provenance(statement: &Value) -> bool {
    let kind = statement["predicate"]["buildDefinition"]["buildType"].as_str();
    kind.is_some_and(|kind| kind.starts_with(env!("CARGO_PKG_REPOSITORY")))
}

/// Something that was fetched, with what it is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Material {
    pub(crate) uri: String,
    /// `sha256` or `gitCommit`.
    pub(crate) kind: &'static str,
    pub(crate) digest: String,
}

/// What a context of a Dockerfile is known by.
pub(crate) struct ContextMaterial {
    pub(crate) name: String,
    /// Of the repository that it is of.
    pub(crate) uri: Option<String>,
    /// `gitCommit`, or `kilnFiles`: what was taken of it.
    pub(crate) kind: &'static str,
    pub(crate) digest: String,
}

/// What the name of an image in the Dockerfile meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResolvedBase {
    pub name: String,
    /// Of its manifest.
    pub digest: Digest,
}

/// What of a Dockerfile's image is told about where it came from.
pub(crate) struct DockerfileOrigin<'a> {
    pub(crate) name: &'a str,
    /// Of its text.
    pub(crate) dockerfile: Digest,
    pub(crate) target: Option<&'a str>,
    pub(crate) build_args: &'a BTreeMap<String, String>,
    pub(crate) bases: &'a [ResolvedBase],
    pub(crate) fetched: &'a BTreeSet<Material>,
    pub(crate) networked: &'a [String],
    pub(crate) commit: Option<&'a CommitInfo>,
    pub(crate) checkout: Option<&'a Checkout>,
    pub(crate) granted: &'a Granted,
    /// The names of the folders besides the context.
    pub(crate) contexts: Vec<&'a String>,
    pub(crate) context_materials: Vec<ContextMaterial>,
    pub(crate) allow_leaks: &'a [String],
}

impl DockerfileOrigin<'_> {
    pub(crate) fn statement(
        &self,
        digest: &Digest,
        steps: &[Done],
        tests: &[Passed],
    ) -> Result<Vec<u8>, CanonicalError> {
        let Self {
            name,
            dockerfile,
            target,
            build_args,
            bases,
            fetched,
            networked,
            commit,
            checkout,
            granted,
            contexts,
            context_materials,
            allow_leaks,
        } = self;
        let repository = env!("CARGO_PKG_REPOSITORY");
        let of_definition = commit.map(|commit| (&commit.sha, commit.dirty));
        let known = of_definition.or(checkout.map(|found| (&found.sha, found.dirty)));
        let mut materials: Vec<Value> = known
            .iter()
            .map(|(sha, _)| json!({"name": "context", "digest": {"gitCommit": sha}}))
            .collect();
        for ContextMaterial {
            name,
            uri,
            kind,
            digest,
        } in context_materials
        {
            let mut material = json!({"name": name, "digest": {*kind: digest}});
            if let Some(uri) = uri {
                material["uri"] = json!(uri);
            }
            materials.push(material);
        }
        materials.push(json!({"name": "Dockerfile", "digest": {"sha256": dockerfile.hex()}}));
        materials.extend(
            bases
                .iter()
                .map(|base| json!({"name": base.name, "digest": {"sha256": base.digest.hex()}})),
        );
        materials.extend(
            fetched.iter().map(
                |Material { uri, kind, digest }| json!({"uri": uri, "digest": {*kind: digest}}),
            ),
        );
        // One that looks secret is told as given, and not what it was.
        let build_args: BTreeMap<&String, Option<&String>> = build_args
            .iter()
            .filter(|(name, _)| !PROXIES.contains(&name.as_str()))
            .map(|(name, value)| (name, (!leaks::is_secret(name, value)).then_some(value)))
            .collect();
        let steps: Vec<Value> = steps
            .iter()
            .map(|step| {
                json!({
                    "name": step.name,
                    "key": step.key,
                    "layer": step.diff_id,
                    "usedNetwork": networked.contains(&step.name),
                })
            })
            .collect();
        let tests: Vec<Value> = tests
            .iter()
            .map(|test| json!({"name": test.name, "digest": test.digest}))
            .collect();
        canonical_json(&json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": digest.hex()}}],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": format!("{repository}/bake-dockerfile/v1"),
                    "externalParameters": {
                        "image": name,
                        "target": target,
                        "buildArgs": build_args,
                        "commit": known.map(|(sha, _)| sha),
                        "dirty": known.is_none_or(|(_, dirty)| dirty),
                        "changed": checkout.and_then(|found| found.changed.as_ref()),
                        "definition": commit.map(|commit| &commit.definition),
                        "dockerfile": checkout.map(|found| &found.dockerfile),
                        "context": checkout.map(|found| &found.context),
                        "contexts": contexts,
                        "allowLeaks": allow_leaks,
                        // Never what they are.
                        "secrets": granted.secrets.keys().collect::<Vec<_>>(),
                        "ssh": granted.ssh.keys().collect::<Vec<_>>(),
                        "allow": granted.rights(),
                        "noNetwork": granted.no_network,
                    },
                    "internalParameters": {"steps": steps, "tests": tests},
                    "resolvedDependencies": materials,
                },
                "runDetails": {
                    "builder": {
                        "id": repository,
                        "version": {"kiln": env!("CARGO_PKG_VERSION")},
                    },
                },
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_and_no_proxy_is_among_the_build_arguments() {
        let build_args = [
            ("HTTPS_PROXY", "http://user:hunter2@proxy"),
            ("no_proxy", "localhost"),
            ("DEPLOY_KEY", "hunter2"),
            ("DATABASE_URL", "postgres://u:hunter2@h"),
            ("VERSION", "1.2"),
        ];
        let origin = DockerfileOrigin {
            name: "api",
            dockerfile: Digest::of(b""),
            target: None,
            build_args: &build_args
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            bases: &[],
            fetched: &BTreeSet::new(),
            networked: &[],
            commit: None,
            checkout: None,
            granted: &Granted::default(),
            contexts: Vec::new(),
            context_materials: Vec::new(),
            allow_leaks: &[],
        };
        let statement = origin.statement(&Digest::of(b""), &[], &[]).unwrap();
        assert!(!String::from_utf8_lossy(&statement).contains("hunter2"));
        let said: Value = serde_json::from_slice(&statement).unwrap();
        assert_eq!(
            said["predicate"]["buildDefinition"]["externalParameters"]["buildArgs"],
            json!({"DEPLOY_KEY": null, "DATABASE_URL": null, "VERSION": "1.2"})
        );
    }
}
