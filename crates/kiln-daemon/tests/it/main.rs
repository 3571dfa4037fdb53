//! The controller against everything real: the proxy and the supervisor as processes, instances in containers, requests over
//! sockets. Needs root.
//!
//! The test program is also every process under test: supervisor, controller, proxy, shim, and the application inside the
//! instances (its image is this very program with its libraries).

#![allow(clippy::disallowed_methods)] // waits have deadlines

mod api;
mod app;
mod client;
mod engines;
mod faults;
mod load;
mod rollouts;
mod world;

use std::path::PathBuf;

use libtest_mimic::{Arguments, Trial};

fn main() {
    kiln_engine::dispatch();
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().unwrap_or_default();
    let root = arguments.nth(1).map(PathBuf::from).unwrap_or_default();
    match role.as_str() {
        "app" => app::run(),
        "serve" => {
            let options = kiln_daemon::DaemonOptions { root };
            if let Err(error) = kiln_daemon::serve(&options) {
                eprintln!("controller: {error:?}");
                std::process::exit(1);
            }
            return;
        }
        "proxy" => {
            let options = kiln_proxy::ProxyOptions {
                root,
                uid: 61007,
                gid: 61007,
                workers: 2,
            };
            if let Err(error) = kiln_proxy::run(options) {
                eprintln!("proxy: {error:?}");
                std::process::exit(1);
            }
            return;
        }
        "supervise" => {
            let options = kiln_supervise::SuperviseOptions::new(root).expect("own program");
            if let Err(error) = kiln_supervise::run(options) {
                eprintln!("supervisor: {error:?}");
                std::process::exit(1);
            }
            return;
        }
        _ => {}
    }
    let arguments = Arguments::from_args();
    let tests = rollouts::TESTS
        .iter()
        .chain(faults::TESTS)
        .chain(api::TESTS)
        .chain(engines::TESTS);
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
