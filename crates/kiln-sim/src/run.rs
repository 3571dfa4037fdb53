//! One run: a seed in, what happened out.

use std::fmt;

use kiln_control::Mutation;

use crate::world::World;

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Run a controller that is wrong in this way.
    pub mutation: Option<Mutation>,
    /// Keep every event and action, also when all goes well.
    pub trace: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rollouts that began.
    pub rollouts: u64,
    pub done: u64,
    pub turned_back: u64,
    /// Changes of a policy alone that were not taken: their probes did not pass.
    pub policies_kept: u64,
    /// Inputs that the controller was given.
    pub steps: u64,
    /// The controller was killed and read its state back from the journal's bytes.
    pub restarts: u64,
    /// Rollbacks to a complete warm set: one route, in the step of the command.
    pub warm_rollbacks: u64,
    pub refused: u64,
    pub reboots: u64,
    /// A proxy said no to a table or to a part of it.
    pub routes_refused: u64,
    /// One line for each event and action, with `trace`.
    pub trace: Vec<String>,
}

/// An invariant did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    /// Its number in the design; 0 is the simulator's own bound on steps.
    pub invariant: u8,
    pub what: String,
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {}: invariant {} does not hold: {}",
            self.seed, self.invariant, self.what
        )
    }
}

impl std::error::Error for Failure {}

/// Runs the world of `seed` to its end. The same seed and options give the same result. A failure is found without
/// a trace first and run again with one, because keeping it costs more than the run.
pub fn run(seed: u64, options: &Options) -> Result<Stats, Failure> {
    match World::new(seed, options.mutation, options.trace).run() {
        Err(_) if !options.trace => World::new(seed, options.mutation, true).run(),
        result => result,
    }
}
