//! The engine against the kernel: real containers on a real EROFS layer. Needs root and what `scripts/install-test-deps` installs.
//!
//! The test program is also the program that the engine re-executes as shim and sandbox, so its `main` dispatches first.

#![allow(clippy::disallowed_methods)] // waits have deadlines

mod instances;
mod network;
mod steps;
mod world;

use libtest_mimic::{Arguments, Trial};

fn main() {
    kiln_engine::dispatch();
    let arguments = Arguments::from_args();
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let tests = instances::TESTS
        .iter()
        .chain(network::TESTS)
        .chain(steps::TESTS);
    let trials = tests.map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&arguments, trials).exit();
}
