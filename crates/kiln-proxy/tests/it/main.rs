//! The proxy and its supervisor as the processes that they are, between real sockets.
//!
//! This binary is both the tests and the processes under test: called with `proxy`, `supervise` or `controller`
//! as its first argument it is that process, which is why it has a `main` of its own.
#![allow(clippy::disallowed_methods)] // tests wait for real things

mod client;
mod drain;
mod http;
mod machine;
mod origin;
mod processes;
mod switch;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kiln_proxy::{Limits, ProxyOptions};
use kiln_supervise::{SuperviseOptions, WatchLimits};

/// A user that exists nowhere: the proxy needs none in any file.
const PROXY_UID: u32 = 64_123;

/// A file in the root of a machine whose processes have short limits.
const IMPATIENT: &str = "impatient";

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = || PathBuf::from(&args[2]);
    match args.first().map(String::as_str) {
        Some("proxy") => {
            let mut limits = Limits {
                retire_idle: Duration::from_secs(1),
                ..Limits::default()
            };
            if root().join(IMPATIENT).exists() {
                limits.head = Duration::from_secs(1);
                limits.answer = Duration::from_secs(2);
                limits.body = Duration::from_secs(2);
            }
            let options = ProxyOptions {
                root: root(),
                uid: PROXY_UID,
                gid: PROXY_UID,
                workers: 2,
            };
            end(kiln_proxy::run_with(options, limits))
        }
        Some("supervise") => {
            let mut options = SuperviseOptions::new(root()).expect("the path of this binary");
            options.controller_args[0] = "controller".into();
            if root().join(IMPATIENT).exists() {
                options.watch = WatchLimits {
                    answer: Duration::from_secs(5),
                    start: Duration::from_secs(30),
                };
            }
            end(kiln_supervise::run(options))
        }
        Some("controller") => answer_watchdog(&root()),
        _ => test(&args),
    }
}

/// The tests themselves say what a controller would; the process only has to be there, and to answer its supervisor.
fn answer_watchdog(root: &Path) -> ExitCode {
    let path = root.join("run/kiln.sock");
    // An earlier one's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("the controller's socket");
    for stream in listener.incoming() {
        match stream.and_then(|mut stream| stream.write_all(b"HTTP/1.1 404 Not Found\r\n")) {
            Ok(()) => eprintln!("answered"),
            Err(error) => eprintln!("the supervisor did not wait for its answer: {error}"),
        }
    }
    ExitCode::SUCCESS
}

fn end<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        eprintln!("  because: {error}");
        source = error.source();
    }
    ExitCode::FAILURE
}

/// Runs those whose name has one of the words in it; all without a word.
fn test(args: &[String]) -> ExitCode {
    let words: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let tests: Vec<Test> = [drain::TESTS, http::TESTS, processes::TESTS, switch::TESTS].concat();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let passed = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
