//! What the provenance of an image says about how it was baked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_model::Digest;
use kiln_oci::{Layer, Store};
use serde::Deserialize;

use super::refused;
use crate::documents;
use crate::failure::Failure;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Definition,
    Dockerfile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recorded {
    #[serde(skip)]
    kind: Option<Kind>,
    pub(super) external_parameters: External,
    pub(super) internal_parameters: Internal,
    #[serde(default)]
    resolved_dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct External {
    pub(super) image: Option<String>,
    pub(super) commit: Option<String>,
    pub(super) definition: Option<PathBuf>,
    #[serde(default)]
    pub(super) dirty: bool,
    /// What made it dirty, as far as it is known.
    pub(super) changed: Option<String>,
    /// The rest is a Dockerfile's.
    pub(super) dockerfile: Option<PathBuf>,
    pub(super) context: Option<PathBuf>,
    pub(super) target: Option<String>,
    /// `None`: one that looks secret.
    #[serde(default)]
    pub(super) build_args: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) contexts: Vec<String>,
    #[serde(default)]
    pub(super) secrets: Vec<String>,
    #[serde(default)]
    pub(super) ssh: Vec<String>,
    #[serde(default)]
    pub(super) allow: Vec<String>,
    #[serde(default)]
    pub(super) allow_leaks: Vec<String>,
    #[serde(default)]
    pub(super) no_network: bool,
}

#[derive(Deserialize)]
pub(super) struct Internal {
    pub(super) lock: Option<Digest>,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) name: String,
    layer: Option<Digest>,
    #[serde(default)]
    used_network: bool,
}

#[derive(Deserialize)]
struct Dependency {
    /// `None`: what was fetched has an address.
    name: Option<String>,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

impl Recorded {
    pub(super) fn kind(&self) -> Kind {
        self.kind.unwrap_or(Kind::Definition)
    }

    /// The images that a Dockerfile stands on or takes from, by their names in it.
    pub(super) fn bases(&self) -> BTreeMap<String, Digest> {
        // The first is the Dockerfile, or the context with the commit.
        let all = self.resolved_dependencies.iter();
        all.filter_map(|one| {
            let name = one.name.clone().filter(|name| name != "Dockerfile")?;
            let digest = Digest::from_hex(one.digest.get("sha256")?).ok()?;
            Some((name, digest))
        })
        .collect()
    }

    /// The step that made each layer; those of a base are its own business.
    pub(super) fn steps_of(&self, layers: &[Layer]) -> Vec<String> {
        let steps = &self.internal_parameters.steps;
        let made = |layer: &Layer| steps.iter().find(|step| step.layer == Some(layer.diff_id));
        layers
            .iter()
            .map(|layer| made(layer).map_or("the base".to_owned(), |step| step.name.clone()))
            .collect()
    }

    pub(super) fn networked(&self) -> Vec<String> {
        let steps = self.internal_parameters.steps.iter();
        let networked = steps.filter(|step| step.used_network);
        networked.map(|step| step.name.clone()).collect()
    }
}

/// The newest of a clean commit.
pub(super) fn find(store: &Store, digest: &Digest, image: &str) -> Result<Recorded, Failure> {
    let mut found: Option<Recorded> = None;
    for document in documents::of(store, digest, documents::Kind::Provenance)? {
        let definition = &document.value["predicate"]["buildDefinition"];
        let kind = match definition["buildType"].as_str() {
            Some(kind) if kind.ends_with("/bake-dockerfile/v1") => Kind::Dockerfile,
            _ => Kind::Definition,
        };
        let mut recorded = Recorded::deserialize(definition).map_err(|error| {
            let why = format!("its provenance can't be understood: {error}");
            refused(image, why, "bake it again with this version of kiln")
        })?;
        recorded.kind = Some(kind);
        if !recorded.external_parameters.dirty {
            return Ok(recorded);
        }
        found.get_or_insert(recorded);
    }
    let dirty = found.ok_or_else(|| documents::missing(image, documents::Kind::Provenance))?;
    let no_commit_has = match &dirty.external_parameters.changed {
        Some(path) => format!("it was baked of files that no commit has: of `{path}`, for one"),
        None => "it was baked of files that no commit has".to_owned(),
    };
    Err(match (&dirty.external_parameters.commit, dirty.kind()) {
        (None, Kind::Dockerfile) => refused(
            image,
            "its Dockerfile and its context were not in one Git repository",
            "commit both, bake again from the folder of the repository, and verify that image",
        ),
        (_, Kind::Dockerfile) => refused(
            image,
            no_commit_has,
            "commit the Dockerfile and its context, or leave files out with .dockerignore; bake again, and verify that image",
        ),
        (_, Kind::Definition) => refused(
            image,
            no_commit_has,
            "commit the definition and what it copies, bake again, and verify that image",
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bases_are_told_from_what_else_a_bake_took() {
        let (digest, hex) = (Digest::of(b"base"), Digest::of(b"base").hex());
        let definition = json!({
            "externalParameters": {"image": "a:1", "commit": "c", "dirty": false, "buildArgs": {"A": "1", "TOKEN": null}},
            "internalParameters": {"steps": [{"name": "ADD x /", "key": "k", "layer": digest, "usedNetwork": true}]},
            "resolvedDependencies": [
                {"name": "context", "digest": {"gitCommit": "c"}},
                {"name": "Dockerfile", "digest": {"sha256": hex}},
                {"name": "debian:bookworm", "digest": {"sha256": hex}},
                {"uri": "https://host/x", "digest": {"sha256": hex}},
            ],
        });
        let recorded: Recorded = serde_json::from_value(definition).unwrap();
        let wanted = BTreeMap::from([("debian:bookworm".to_owned(), digest)]);
        assert_eq!(recorded.bases(), wanted);
        assert_eq!(recorded.networked(), ["ADD x /"]);
    }
}
