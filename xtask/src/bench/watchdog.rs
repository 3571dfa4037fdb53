//! A command that hangs must not hang the benchmark.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long one command of kiln may take: a first bake fetches packages.
const COMMAND_DEADLINE: Duration = Duration::from_secs(300);

/// Kills a command that does not end; the pidfd names that process even when its number is used again.
pub(super) struct Watchdog(
    #[expect(dead_code, reason = "dropping it ends the thread")] mpsc::Sender<()>,
);

impl Watchdog {
    pub(super) fn start(pid: u32) -> Self {
        let (ended, waiting) = mpsc::channel();
        let process = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        std::thread::spawn(move || {
            if waiting.recv_timeout(COMMAND_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Some(process) = process
                && let Err(error) = pidfd_send_signal(&process, Signal::KILL)
            {
                eprintln!("process {pid} could not be killed: {error}");
            }
        });
        Self(ended)
    }
}

/// A command as a person would type it.
pub(super) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name();
    let words: Vec<_> = program
        .into_iter()
        .chain(command.get_args())
        .map(std::ffi::OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
