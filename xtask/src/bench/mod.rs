//! `bench NAME`: what kiln promises, measured on the release binary with real processes, and written down in
//! `docs/benchmarks.md`.

mod bake;
mod builders;
mod crash;
mod debian;
mod dockerfile;
mod leaks;
mod machine;
mod proxy;
mod report;
mod rollback;
mod sim;
mod switch;
mod watchdog;
mod world;

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use crate::args::{Args, ArgsError};
use report::ReportError;
use world::WorldError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(
        "no benchmark `{0}`; there are switch, rollback, crash, bake, dockerfile, debian, proxy and sim"
    )]
    Unknown(String),
    #[error("`cargo build` of kiln failed: its output is above")]
    Build,
    #[error("cargo could not be run")]
    Cargo(#[source] std::io::Error),
    #[error("`{program}` is needed to compare with: `apt-get install {packages}`")]
    NotInstalled {
        program: &'static str,
        packages: &'static str,
    },
    #[error("cargo built no executable `kiln`")]
    NoExecutable,
    #[error(transparent)]
    World(#[from] WorldError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("{what}: expected {expected}, found {found}")]
    Broken {
        what: String,
        expected: String,
        found: String,
    },
}

/// The workspace and the binary under test.
pub(crate) struct Setting {
    workspace: PathBuf,
    pub(crate) kiln: PathBuf,
}

impl Setting {
    /// Builds kiln as it is shipped, or with features that only measurements have.
    pub(crate) fn build(features: &[&str]) -> Result<Self, BenchError> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let workspace = manifest.parent().unwrap_or(&manifest).to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build
            .current_dir(&workspace)
            .args(["build", "--release", "--package", "kiln"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(std::process::Stdio::inherit());
        if !features.is_empty() {
            // Its own folder: the shipped binary stays what `cargo build --release` made.
            let target = workspace.join("target").join(features.join("-"));
            build.arg("--target-dir").arg(target);
            build.arg("--features").arg(features.join(","));
        }
        let output = build.output().map_err(BenchError::Cargo)?;
        if !output.status.success() {
            return Err(BenchError::Build);
        }
        let kiln = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Built>(line).ok())
            .find_map(|built| built.executable.filter(|_| built.target.name == "kiln"))
            .ok_or(BenchError::NoExecutable)?;
        Ok(Self { workspace, kiln })
    }

    fn example(&self, name: &str) -> PathBuf {
        self.workspace.join("examples").join(name)
    }

    fn documents(&self) -> PathBuf {
        self.workspace.join("docs")
    }
}

/// A message of `cargo build --message-format=json` about one target.
#[derive(Deserialize)]
struct Built {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Refuses what is not as it has to be; the error says what, and both sides.
fn expect<T: PartialEq + std::fmt::Debug>(
    what: impl Into<String>,
    expected: &T,
    found: &T,
) -> Result<(), BenchError> {
    if expected == found {
        Ok(())
    } else {
        Err(BenchError::Broken {
            what: what.into(),
            expected: format!("{expected:?}"),
            found: format!("{found:?}"),
        })
    }
}

pub(crate) fn run(mut args: Args) -> Result<(), BenchError> {
    let name = args.word().unwrap_or_default();
    match name.as_str() {
        "switch" => switch::run(args),
        "rollback" => rollback::run(args),
        "crash" => crash::run(args),
        "bake" => bake::run(args),
        "dockerfile" => dockerfile::run(args),
        "debian" => debian::run(args),
        "proxy" => proxy::run(args),
        "sim" => sim::run(args),
        _ => Err(BenchError::Unknown(name)),
    }
}
