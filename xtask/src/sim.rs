//! `sim`: one seed of the simulator again, with everything that happened in it.

use crate::args::{Args, ArgsError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SimError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("`--seed N` names the seed to replay")]
    NoSeed,
    #[error("{0}")]
    Failed(Box<kiln_sim::Failure>),
}

pub(crate) fn run(mut args: Args) -> Result<(), SimError> {
    let seed: u64 = args.option("--seed", "a number")?.ok_or(SimError::NoSeed)?;
    args.end()?;
    let options = kiln_sim::Options {
        mutation: None,
        trace: true,
    };
    let stats =
        kiln_sim::run(seed, &options).map_err(|failure| SimError::Failed(Box::new(failure)))?;
    for line in &stats.trace {
        println!("{line}");
    }
    println!(
        "seed {seed} holds: {} rollouts, {} steps",
        stats.rollouts, stats.steps
    );
    Ok(())
}
