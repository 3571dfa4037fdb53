//! What cargo knows of the workspace: packages, their edges and their licences.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

/// The platform whose dependencies count: kiln runs on Linux alone.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("cargo could not be started")]
    Spawn(#[source] std::io::Error),
    #[error("`cargo metadata` failed:\n{stderr}")]
    Failed { stderr: String },
    #[error("`cargo metadata` answered what this task does not understand")]
    Parse(#[source] serde_json::Error),
    #[error("no package `{name}` in the workspace")]
    NoPackage { name: String },
}

#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
    pub(crate) workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Declared>,
}

/// An edge as the manifest writes it.
#[derive(Debug, Deserialize)]
pub(crate) struct Declared {
    pub(crate) name: String,
    /// `None` is a normal dependency, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// Which edges a walk follows. Development dependencies reach no user and are never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    Normal,
    NormalAndBuild,
}

impl Metadata {
    pub(crate) fn load() -> Result<Self, MetadataError> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--filter-platform"])
            .arg(PLATFORM)
            .output()
            .map_err(MetadataError::Spawn)?;
        if !output.status.success() {
            return Err(MetadataError::Failed {
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        serde_json::from_slice(&output.stdout).map_err(MetadataError::Parse)
    }

    pub(crate) fn members(&self) -> Vec<&Package> {
        let members: BTreeSet<&str> = self.workspace_members.iter().map(String::as_str).collect();
        self.packages
            .iter()
            .filter(|package| members.contains(package.id.as_str()))
            .collect()
    }

    /// Every package that `name` reaches, itself included, with the path of names that leads to it.
    pub(crate) fn reached(
        &self,
        name: &str,
        follow: Follow,
    ) -> Result<Vec<(&Package, Vec<&str>)>, MetadataError> {
        let by_id: BTreeMap<&str, &Package> = self
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package))
            .collect();
        let nodes: BTreeMap<&str, &Node> = self
            .resolve
            .nodes
            .iter()
            .map(|node| (node.id.as_str(), node))
            .collect();
        let start = self
            .members()
            .into_iter()
            .find(|package| package.name == name)
            .ok_or_else(|| MetadataError::NoPackage {
                name: name.to_owned(),
            })?;

        let mut visited = BTreeSet::from([start.id.as_str()]);
        let mut queue = VecDeque::from([(start, vec![start.name.as_str()])]);
        let mut reached = Vec::new();
        while let Some((package, path)) = queue.pop_front() {
            for edge in nodes.get(package.id.as_str()).map_or(&[][..], |n| &n.deps) {
                let followed = edge
                    .dep_kinds
                    .iter()
                    .any(|kind| match kind.kind.as_deref() {
                        None => true,
                        Some("build") => follow == Follow::NormalAndBuild,
                        Some(_) => false,
                    });
                if followed
                    && let Some(next) = by_id.get(edge.pkg.as_str())
                    && visited.insert(next.id.as_str())
                {
                    let mut longer = path.clone();
                    longer.push(next.name.as_str());
                    queue.push_back((next, longer));
                }
            }
            reached.push((package, path));
        }
        Ok(reached)
    }
}
