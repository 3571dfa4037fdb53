//! The process that outlives the others: keeps the listening descriptors by name, starts controller and proxy,
//! and starts again whichever ends.
//!
//! One thread and one poll loop, and no state but descriptors and pids: there is little that can go wrong in it,
//! and nothing that its successor can't find again. When it is killed, controller and proxy go on; the next
//! supervisor adopts both by pid and start time, and gets the descriptors back from the proxy. Children write
//! their stderr straight into their log files, so that a supervisor that is gone breaks no pipe.
//!
//! This crate must hardly ever change, because an upgrade of kiln replaces every process but this one without a gap. So
//! it links the kernel's calls and serde, and knows nothing of routes or releases. [`handoff`] is what controller and proxy
//! say to it.
//!
//! It replaces a controller that does not answer any more, and makes its own files anew, should somebody remove them.
//!
//! SIGTERM or SIGINT ends controller and proxy and then itself; instances go on. SIGHUP executes the binary
//! anew in place, for an upgrade.

#![allow(clippy::disallowed_methods)] // the supervisor is an edge: it reads the clock
#![warn(clippy::let_underscore_must_use, clippy::too_many_lines)]

mod adoption;
mod answering;
mod checks;
mod child;
pub mod handoff;
mod keeper;
mod place;
mod restart;
mod state;
mod watchdog;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

pub use keeper::run;
pub use watchdog::WatchLimits;

/// What to supervise.
#[derive(Clone, Debug)]
pub struct SuperviseOptions {
    /// The data root.
    pub root: PathBuf,
    /// The binary that has the subcommands of `controller_args` and `proxy_args`.
    pub exe: PathBuf,
    pub controller_args: Vec<OsString>,
    pub proxy_args: Vec<OsString>,
    pub watch: WatchLimits,
}

impl SuperviseOptions {
    /// `serve --root ROOT` and `proxy --root ROOT` of the binary that runs now.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        let args = |command: &str| {
            vec![
                OsString::from(command),
                OsString::from("--root"),
                root.clone().into_os_string(),
            ]
        };
        Ok(Self {
            exe: std::env::current_exe()?,
            controller_args: args("serve"),
            proxy_args: args("proxy"),
            watch: WatchLimits::default(),
            root,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("already running: a supervisor with pid {pid} has {}; end it with `kiln down`, or name another root", root.display())]
    AlreadyRunning { root: PathBuf, pid: String },
    #[error("can't {action} {}: check that it is writable and the disk is not full", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't catch signals")]
    Signals(#[source] io::Error),
    #[error("can't wait for events")]
    Poll(#[source] io::Error),
    #[error("can't execute {} anew: it goes on as it was if you start `kiln supervise` again", path.display())]
    Exec {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// To the supervisor's own log. A log that is gone must not end it.
fn say(message: &str) {
    drop(writeln!(io::stderr(), "kiln supervise: {message}"));
}
