//! `fuzz TARGET`: the fuzzer (libFuzzer) on one of `kiln-fuzz`'s targets, built by the stable compiler with the coverage that it needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::args::{Args, ArgsError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum FuzzError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("name a target: {0}")]
    NoTarget(String),
    #[error("{} can't be used", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`cargo` can't be started")]
    Start(#[source] std::io::Error),
    #[error("cargo could not build the fuzzer: its output is above")]
    Build,
    #[error(
        "`{target}` broke: the input is in {found}; mend what it shows, keep the input there, and `cargo test -p kiln-fuzz` replays it"
    )]
    Found { target: String, found: PathBuf },
}

/// What `cargo fuzz` asks of the compiler, without a sanitizer: there is no unsafe code in what is tested.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks";

pub(crate) fn run(mut args: Args) -> Result<(), FuzzError> {
    let target = args.word();
    let seconds = args.count("--seconds", 60)?;
    args.end()?;
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().unwrap_or(&manifest).to_owned();
    let fuzz = workspace.join("fuzz");
    let names = names(&fuzz.join("seeds"))?;
    let Some(target) = target.filter(|target| names.contains(target)) else {
        return Err(FuzzError::NoTarget(names.join(", ")));
    };
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let built = workspace.join("target/fuzz");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&workspace)
        .args(["build", "--release", "--package", "kiln-fuzz"])
        .args([
            "--features",
            "libfuzzer",
            "--bin",
            "fuzz",
            "--target",
            &triple,
        ])
        .arg("--target-dir")
        .arg(&built)
        .env("RUSTFLAGS", COVERAGE)
        .status()
        .map_err(FuzzError::Start)?;
    if !status.success() {
        return Err(FuzzError::Build);
    }
    // What it learns goes on from run to run, and is not kept in Git.
    let learnt = built.join("corpus").join(&target);
    let found = fuzz.join("found").join(&target);
    for folder in [&learnt, &found] {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let status = Command::new(built.join(triple).join("release/fuzz"))
        .env("KILN_FUZZ", &target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args([
            "-max_len=16384",
            "-timeout=10",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
        ])
        .arg(&learnt)
        .arg(fuzz.join("seeds").join(&target))
        .status()
        .map_err(at(&built))?;
    if status.success() {
        // Empty unless something was found, in this run or before.
        let _ = std::fs::remove_dir(&found);
        let _ = std::fs::remove_dir(fuzz.join("found"));
        Ok(())
    } else {
        Err(FuzzError::Found { target, found })
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> FuzzError {
    let path = path.to_owned();
    move |source| FuzzError::Io { path, source }
}

/// The targets: each has seeds.
fn names(seeds: &Path) -> Result<Vec<String>, FuzzError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(seeds).map_err(at(seeds))? {
        let entry = entry.map_err(at(seeds))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
