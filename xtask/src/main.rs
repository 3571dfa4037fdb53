//! Tasks of the workspace: checks that every commit has to pass, and benchmarks. `cargo xtask help`.
#![warn(clippy::allow_attributes, clippy::too_many_lines)]
#![expect(
    clippy::disallowed_methods,
    reason = "a tool that measures: this is where the clock is read"
)]

mod apt_choice;
mod args;
mod bench;
mod conformance;
mod fuzz;
mod layers;
mod licences;
mod load;
mod metadata;
mod sim;
mod vm;

use std::error::Error;
use std::process::ExitCode;

use args::{Args, ArgsError};

const HELP: &str = "\
cargo xtask TASK

  check-layers     arrows between crates go down, pure crates are pure, unsafe code is in one place
  check-licences   every dependency of kiln has a permissive licence
  conformance      [--record | --new] [--case PART] [--cases FOLDER]
                   Dockerfiles baked by kiln and by BuildKit (built under target/peer): the same image?
                   (FOLDER/AREA/NAME.case or FOLDER/AREA/NAME/Dockerfile instead of kiln's own)
                   --record writes what BuildKit makes of all cases, --new of those without a record
  apt-choice       [--suite bookworm] [--mirror ADDRESS] [--set PACKAGES] [--recommends] [--kiln PROGRAM]
                   some seventy sets of packages: does kiln take those that apt takes?
  bench switch     [--cycles 50] [--requests 100000] [--workers 32] [--rate 1000]
                   applies and rollbacks in turn under constant load: what is lost
  bench rollback   [--n 200] [--rate 300]
                   rollbacks to a warm set: how long, and how many fsyncs
  bench crash      [--depth 4] [--proxy-kills 10] [--rate 300]
                   controller and proxy killed in the middle of rollouts
  bench bake       [--runs 25] [--first-runs 5]
                   bakes and applies with nothing to do, one file to do, everything to do
  bench dockerfile [--runs 15] [--first-runs 3] [--versions 50] [--peer-versions 4] [--megabytes 1000]
                   Dockerfiles by kiln, docker and buildah: wall and processor time, storage
  bench debian     [--runs 5]
                   Debian images by kiln and mmdebstrap, packages cached and not
  bench proxy      [--rounds 7] [--seconds 3]
                   the proxy before haproxy and nginx: requests per CPU second
  bench sim        [--rollouts 100000]
                   simulated rollouts with faults: how many a second, and which seeds fail
  sim              --seed N
                   one seed of the simulator again, with everything that happened in it
  fuzz             TARGET [--seconds 60]
                   looks for an input that breaks what kiln reads of others
  vm               [--deb FILE]
                   the engine's tests in qemu: Debian's kernel (or the one of a package), cgroup v2

Benchmarks need root; each writes its section of docs/benchmarks.md and leaves nothing running.";

#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Layers(#[from] layers::LayersError),
    #[error(transparent)]
    Licences(#[from] licences::LicencesError),
    #[error(transparent)]
    AptChoice(#[from] apt_choice::AptChoiceError),
    #[error(transparent)]
    Conformance(#[from] conformance::ConformanceError),
    #[error(transparent)]
    Bench(#[from] bench::BenchError),
    #[error(transparent)]
    Sim(#[from] sim::SimError),
    #[error(transparent)]
    Fuzz(#[from] fuzz::FuzzError),
    #[error(transparent)]
    Vm(#[from] vm::VmError),
    #[error("no task `{0}`\n\n{HELP}")]
    Unknown(String),
}

fn main() -> ExitCode {
    match run(Args::new(std::env::args().skip(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("  because: {inner}");
                cause = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Args) -> Result<(), TaskError> {
    let task = args.word().unwrap_or_default();
    match task.as_str() {
        "" | "help" => println!("{HELP}"),
        "check-layers" => {
            args.end()?;
            let layers::Checked { files, notes } = layers::check()?;
            println!("layers: {files} files hold the rules");
            for note in notes {
                println!("layers: {note}");
            }
        }
        "check-licences" => {
            args.end()?;
            println!("licences: {} packages are allowed", licences::check()?);
        }
        "apt-choice" => apt_choice::run(args)?,
        "conformance" => conformance::run(args)?,
        "bench" => bench::run(args)?,
        "sim" => sim::run(args)?,
        "fuzz" => fuzz::run(args)?,
        "vm" => vm::run(args)?,
        _ => return Err(TaskError::Unknown(task)),
    }
    Ok(())
}
