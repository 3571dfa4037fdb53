//! Kiln's Dockerfiles beside BuildKit's: the suite `crates/kiln/tests/conformance` with the peer running.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use crate::args::{Args, ArgsError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConformanceError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("`{program}` can't be started")]
    Start {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` can't be made absolute", path.display())]
    Path {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{program}` ended with {status}")]
    Ended {
        program: &'static str,
        status: ExitStatus,
    },
}

fn run_one(program: &'static str, command: &mut Command) -> Result<(), ConformanceError> {
    let status = command
        .status()
        .map_err(|source| ConformanceError::Start { program, source })?;
    if status.success() {
        Ok(())
    } else {
        Err(ConformanceError::Ended { program, status })
    }
}

pub(crate) fn run(mut args: Args) -> Result<(), ConformanceError> {
    let case: Option<String> = args.option("--case", "a part of a case's name")?;
    let cases: Option<String> = args.option("--cases", "a folder of folders with cases")?;
    let record = args.flag("--record");
    let new = args.flag("--new");
    args.end()?;
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().unwrap_or(&manifest).to_owned();
    // As the caller's folder has them: what is started runs in others.
    let absolute = |path: std::ffi::OsString| {
        std::path::absolute(&path).map_err(|source| ConformanceError::Path {
            path: path.into(),
            source,
        })
    };
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => absolute(target)?,
        None => workspace.join("target"),
    };
    let program = workspace.join("scripts/build-peer");
    let mut build = Command::new(program);
    build
        .current_dir(&workspace)
        .env("CARGO_TARGET_DIR", &target);
    run_one("scripts/build-peer", &mut build)?;
    let peer = target.join("peer");
    let mut test = Command::new("cargo");
    test.current_dir(&workspace)
        .env("CARGO_TARGET_DIR", &target);
    test.args(["test", "--package", "kiln", "--test", "conformance", "--"])
        .args(case)
        .env("KILN_PEER", peer);
    if let Some(folder) = cases {
        test.env("KILN_CASES", absolute(folder.into())?);
    }
    if record || new {
        test.env("KILN_PEER_RECORD", if new { "new" } else { "all" });
    }
    run_one("cargo test", &mut test)
}
