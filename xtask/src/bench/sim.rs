//! `bench sim`: simulated rollouts with faults, and how many a second.

use std::time::Instant;

use super::BenchError;
use super::report::Section;
use crate::args::Args;

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let wanted = args.count("--rollouts", 100_000)?;
    args.end()?;
    let options = kiln_sim::Options {
        mutation: None,
        trace: false,
    };
    let began = Instant::now();
    let (mut rollouts, mut restarts, mut turned_back, mut failures) =
        (0_u64, 0_u64, 0_u64, Vec::new());
    let mut seed = 0;
    while rollouts < wanted {
        match kiln_sim::run(seed, &options) {
            Ok(stats) => {
                rollouts += stats.rollouts;
                restarts += stats.restarts;
                turned_back += stats.turned_back;
            }
            Err(_) => failures.push(seed),
        }
        seed += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut section = Section {
        command: format!("bench sim --rollouts {wanted}"),
        head: [
            "seeds",
            "rollouts",
            "turned back",
            "controllers killed",
            "seeds that failed",
            "rollouts a second",
        ]
        .map(str::to_owned)
        .into(),
        ..Section::default()
    };
    section.row([
        seed.to_string(),
        rollouts.to_string(),
        turned_back.to_string(),
        restarts.to_string(),
        failures.len().to_string(),
        format!("{:.0}", rollouts as f64 / seconds),
    ]);
    section.notes.push(format!(
        "One thread. Seeds that failed: {failures:?}; `cargo xtask sim --seed N` replays one."
    ));
    let documents = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    Ok(section.publish("sim", &documents)?)
}
