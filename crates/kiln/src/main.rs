//! The one binary: the command line, and every process of kiln by its hidden subcommand.
//!
//! One file for each command in `cmd`. What was typed ([`args`]) and what it means ([`settings`]) are two types;
//! every error ends in [`failure`], which knows its exit code and what to type next. Libraries never print.

// What is allowed is expected, so that it goes when it is no longer needed.
#![warn(clippy::allow_attributes, clippy::too_many_lines)]
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: a bake is given the time of day, waits have deadlines"
)]

mod args;
mod baked;
mod baking;
mod client;
mod cmd;
mod definition;
mod dockerfile;
mod documents;
mod failure;
mod files;
mod git;
mod granted;
mod interrupt;
mod locks;
mod named;
mod output;
mod plan_text;
mod planned;
mod processes;
mod progress;
mod readiness;
mod rollout;
mod settings;
mod start;
mod table;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::failure::Exit;

fn main() -> ExitCode {
    // Shims and sandboxes are this binary, and have to be told from it before any thread exists.
    kiln_engine::dispatch();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, not errors; a closed pipe is nobody's concern.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    match cmd::run(args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::failure(&failure);
            failure.exit().into()
        }
    }
}
