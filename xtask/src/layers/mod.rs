//! `check-layers`: the arrows between crates go down only, and so do those between the top-level modules of a crate; pure crates stay
//! pure, unsafe code lives in one crate, and calls that are easily made wrong have one home. A rule that only a document holds is broken by the third person who is in a hurry.

mod circles;
mod homes;
mod purity;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::metadata::{Follow, Metadata, MetadataError};

/// Which workspace crates each may name as a normal or build dependency. Tests may reach further.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    ("kiln-model", &[]),
    ("kiln-config", &["kiln-model"]),
    ("kiln-plan", &["kiln-model"]),
    ("kiln-pool", &["kiln-model"]),
    ("kiln-control", &["kiln-model", "kiln-plan"]),
    (
        "kiln-sim",
        &["kiln-model", "kiln-plan", "kiln-control", "kiln-pool"],
    ),
    ("kiln-fs", &[]),
    ("kiln-oci", &["kiln-model", "kiln-fs"]),
    ("kiln-engine", &["kiln-model", "kiln-fs", "kiln-oci"]),
    ("kiln-http", &["kiln-model"]),
    (
        "kiln-registry",
        &["kiln-model", "kiln-fs", "kiln-http", "kiln-oci"],
    ),
    ("kiln-git", &["kiln-fs", "kiln-http", "kiln-oci"]),
    (
        "kiln-bake",
        &[
            "kiln-model",
            "kiln-fs",
            "kiln-http",
            "kiln-config",
            "kiln-oci",
            "kiln-engine",
            "kiln-git",
            "kiln-registry",
        ],
    ),
    ("kiln-cloud", &["kiln-model", "kiln-fs"]),
    ("kiln-supervise", &["kiln-fs"]),
    (
        "kiln-proxy",
        &["kiln-model", "kiln-fs", "kiln-pool", "kiln-supervise"],
    ),
    (
        "kiln-daemon",
        &[
            "kiln-model",
            "kiln-fs",
            "kiln-plan",
            "kiln-control",
            "kiln-supervise",
            "kiln-engine",
            "kiln-oci",
        ],
    ),
    (
        "kiln",
        &[
            "kiln-model",
            "kiln-fs",
            "kiln-config",
            "kiln-plan",
            "kiln-proxy",
            "kiln-supervise",
            "kiln-cloud",
            "kiln-bake",
            "kiln-git",
            "kiln-engine",
            "kiln-oci",
            "kiln-daemon",
        ],
    ),
    (
        "kiln-fuzz",
        &["kiln-model", "kiln-config", "kiln-oci", "kiln-bake"],
    ),
    ("xtask", &["kiln-model", "kiln-sim"]),
];

/// Crates that decide and never touch the world.
const PURE: &[&str] = &[
    "kiln-model",
    "kiln-config",
    "kiln-plan",
    "kiln-control",
    "kiln-pool",
    "kiln-sim",
];

/// What a pure crate may not link: whatever opens sockets, files or clocks, or asks the system for chance.
const IMPURE_PACKAGES: &[&str] = &[
    "async-std",
    "getrandom",
    "hyper",
    "libc",
    "mio",
    "nix",
    "polling",
    "reqwest",
    "rusqlite",
    "rustix",
    "smol",
    "socket2",
    "tokio",
    "ureq",
];

/// Crates whose top-level modules still need each other in circles. No new one comes in: what is cut leaves the list.
const WITH_CIRCLES: &[&str] = &[
    "kiln-config",
    "kiln-control",
    "kiln-daemon",
    "kiln-plan",
    "kiln-sim",
];

/// The one crate with unsafe code.
const UNSAFE_CRATE: &str = "kiln-engine";

#[derive(Debug, thiserror::Error)]
pub(crate) enum LayersError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{path}: cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} broken:\n{}", if .0.len() == 1 { "a layer rule is" } else { "layer rules are" }, lines(.0))]
    Broken(Vec<Violation>),
}

fn lines(violations: &[Violation]) -> String {
    let lines: Vec<String> = violations.iter().map(|v| format!("  {v}")).collect();
    lines.join("\n")
}

/// A rule broken at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    path: PathBuf,
    /// `None`: the whole file, as for a manifest.
    line: Option<usize>,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.rule),
            None => write!(f, "{}: {}", self.path.display(), self.rule),
        }
    }
}

/// What was looked at, where nothing is broken.
pub(crate) struct Checked {
    pub(crate) files: usize,
    /// What a list here allows and nothing needs any more.
    pub(crate) notes: Vec<String>,
}

pub(crate) fn check() -> Result<Checked, LayersError> {
    let metadata = Metadata::load()?;
    let mut violations = Vec::new();
    let mut files = 0;
    let mut notes = Vec::new();
    for package in metadata.members() {
        let shown = |path: &Path| -> PathBuf {
            path.strip_prefix(&metadata.workspace_root)
                .unwrap_or(path)
                .to_owned()
        };
        let manifest = shown(&package.manifest_path);
        let edges: Vec<&str> = package
            .dependencies
            .iter()
            .filter(|edge| edge.kind.as_deref() != Some("dev"))
            .map(|edge| edge.name.as_str())
            .collect();
        violations.extend(
            edge_rules(&package.name, &edges)
                .into_iter()
                .map(|rule| Violation {
                    path: manifest.clone(),
                    line: None,
                    rule,
                }),
        );
        let pure = PURE.contains(&package.name.as_str());
        if pure {
            for (reached, path) in metadata.reached(&package.name, Follow::Normal)? {
                if IMPURE_PACKAGES.contains(&reached.name.as_str()) {
                    violations.push(Violation {
                        path: manifest.clone(),
                        line: None,
                        rule: format!(
                            "a pure crate links no `{}` (by {})",
                            reached.name,
                            path.join(" -> ")
                        ),
                    });
                }
            }
        }

        let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
        let mut sources = Vec::new();
        let mut misplaced: BTreeMap<&str, Vec<Violation>> = BTreeMap::new();
        for part in ["src", "tests", "benches", "examples"] {
            for path in source::rust_files(&folder.join(part))? {
                let text = std::fs::read_to_string(&path).map_err(|source| LayersError::Read {
                    path: path.clone(),
                    source,
                })?;
                files += 1;
                if part == "src" && !source::is_test_module(&path, folder)? {
                    let inside = path.strip_prefix(folder.join(part)).unwrap_or(&path);
                    sources.push((inside.to_owned(), source::tokens(&text)));
                    for (line, name, rule) in homes::calls(&package.name, &text) {
                        misplaced.entry(name).or_default().push(Violation {
                            path: shown(&path),
                            line: Some(line),
                            rule,
                        });
                    }
                }
                let shell = !pure || part != "src" || source::is_test_module(&path, folder)?;
                let mut found = Vec::new();
                if package.name != UNSAFE_CRATE {
                    found.extend(purity::unsafe_code(&text));
                }
                if !shell {
                    found.extend(purity::impure_names(&text));
                }
                violations.extend(found.into_iter().map(|(line, rule)| Violation {
                    path: shown(&path),
                    line: Some(line),
                    rule,
                }));
            }
        }
        notes.extend(homes::outdated(&package.name, |name| {
            misplaced.get(name).map_or(0, Vec::len)
        }));
        for (name, found) in misplaced {
            if found.len() > homes::left(&package.name, name) {
                violations.extend(found);
            }
        }
        if !WITH_CIRCLES.contains(&package.name.as_str()) {
            let sources = sources
                .iter()
                .map(|(path, tokens)| (path.as_path(), tokens.clone()));
            if let Some(circle) = circles::Modules::of(sources).circle() {
                violations.push(Violation {
                    path: manifest.clone(),
                    line: None,
                    rule: format!(
                        "modules point one way, and here is a circle: {circle}. What two need of each other goes below both"
                    ),
                });
            }
        }
    }
    if violations.is_empty() {
        Ok(Checked { files, notes })
    } else {
        Err(LayersError::Broken(violations))
    }
}

/// The rules that the edges of one crate break. Only kiln's own crates count as edges.
fn edge_rules(package: &str, edges: &[&str]) -> Vec<String> {
    let known = |name: &str| ALLOWED_EDGES.iter().find(|(from, _)| *from == name);
    let Some((_, allowed)) = known(package) else {
        return vec![format!(
            "`{package}` has no place in the layers: give it one in xtask/src/layers/mod.rs"
        )];
    };
    edges
        .iter()
        .filter(|edge| edge.starts_with("kiln") || known(edge).is_some())
        .filter(|edge| !allowed.contains(edge))
        .map(|edge| {
            if allowed.is_empty() {
                format!("`{package}` may not depend on `{edge}`, nor on any crate of the workspace")
            } else {
                format!(
                    "`{package}` may not depend on `{edge}`, only on {}",
                    allowed.join(", ")
                )
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_goes_up_is_found() {
        assert_eq!(
            edge_rules("kiln-engine", &["kiln-model", "kiln-fs", "serde"]),
            [""; 0]
        );
        let broken = edge_rules("kiln-engine", &["kiln-model", "kiln-plan"]);
        assert_eq!(
            broken,
            ["`kiln-engine` may not depend on `kiln-plan`, only on kiln-model, kiln-fs, kiln-oci"]
        );
        assert_eq!(edge_rules("kiln-model", &["kiln-plan"]).len(), 1);
        assert_eq!(edge_rules("kiln-plan", &["xtask"]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert!(edge_rules("kiln-misc", &[])[0].contains("no place in the layers"));
    }

    #[test]
    fn the_allowed_edges_have_no_cycle() {
        // Each crate is listed after all that it may depend on, save for edges to crates further down the table.
        fn depth(name: &str, path: &mut Vec<String>) {
            assert!(!path.iter().any(|p| p == name), "cycle: {path:?} -> {name}");
            path.push(name.to_owned());
            let (_, next) = ALLOWED_EDGES
                .iter()
                .find(|(from, _)| *from == name)
                .unwrap_or_else(|| panic!("{name} is not in the table"));
            for name in *next {
                depth(name, path);
            }
            path.pop();
        }
        for (name, _) in ALLOWED_EDGES {
            depth(name, &mut Vec::new());
        }
    }

    #[test]
    fn a_violation_names_its_place() {
        let violation = Violation {
            path: "crates/kiln-plan/src/step.rs".into(),
            line: Some(12),
            rule: "a pure crate names no `std::fs`".to_owned(),
        };
        assert_eq!(
            violation.to_string(),
            "crates/kiln-plan/src/step.rs:12: a pure crate names no `std::fs`"
        );
    }
}
