//! Real bakes of a real Debian, from the machine's own apt sources. Needs root and the archive.
//!
//! The test program is also the program that steps are re-executed from, so its `main` dispatches first.

#![allow(clippy::disallowed_methods)] // the tests' own time

mod added;
mod apt;
mod archive;
mod around;
mod bakes;
mod bases;
mod copies;
mod dockerfile;
mod explain;
mod faults;
mod image_tests;
mod keys;
mod locks;
mod packages;
mod repositories;
mod runs;
mod server;
mod ssh;
mod verify;
mod world;

use libtest_mimic::{Arguments, Trial};

fn main() {
    kiln_engine::dispatch();
    let arguments = Arguments::from_args();
    let tests = bakes::TESTS
        .iter()
        .chain(added::TESTS)
        .chain(apt::TESTS)
        .chain(bases::TESTS)
        .chain(copies::TESTS)
        .chain(dockerfile::TESTS)
        .chain(faults::TESTS)
        .chain(runs::TESTS)
        .chain(image_tests::TESTS)
        .chain(keys::TESTS)
        .chain(locks::TESTS)
        .chain(packages::TESTS)
        .chain(repositories::TESTS)
        .chain(ssh::TESTS)
        .chain(explain::TESTS)
        .chain(verify::TESTS)
        .chain(around::TESTS);
    let trials = tests
        .map(|(name, test)| {
            let test = *test;
            Trial::test(*name, move || {
                test();
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
