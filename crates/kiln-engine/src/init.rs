//! kiln's init: pid 1 of every container. It reaps what the application leaves behind, forwards signals to it, and ends with
//! it; the kernel then ends everything else in the container.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::children::{self, Ended};
use crate::{rights, sys};

/// How the application ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppStatus {
    Exited(i32),
    Signalled(i32),
}

/// What init says about the application in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppEnd {
    pub(crate) status: AppStatus,
    /// Packets that left by another interface than the loopback.
    pub(crate) sent: u64,
}

/// Of the container's own interfaces; none where the host's network was kept, since then they are not its own.
fn sent() -> u64 {
    std::fs::read_to_string("/proc/net/dev")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix(crate::netlink::INSIDE)?
                .strip_prefix(':')
        })
        // The tenth column: packets transmitted.
        .filter_map(|counts| counts.split_whitespace().nth(9)?.parse::<u64>().ok())
        .sum()
}

/// Runs until the application has ended; gives the exit code for this process. Signals are blocked already.
pub(crate) fn run(application: i32, status: OwnedFd) -> i32 {
    let mut status = std::fs::File::from(status);
    // An init with fewer rights is better; one with too many still works. It signals an application that may be another user's.
    let _ = rights::limit_capabilities(CapabilitySet::KILL);
    let _ = rights::no_new_privileges();
    let _ = rights::die_with_parent();
    loop {
        let Some(signal) = sys::wait_signal(-1) else {
            continue;
        };
        if signal != libc::SIGCHLD {
            let _ = sys::kill(application, signal);
            continue;
        }
        while let Ok(Some((pid, ended))) = children::reap(false) {
            if pid != application {
                continue;
            }
            let (ended, code) = match ended {
                Ended::Exited(code) => (AppStatus::Exited(code), code),
                Ended::Signalled(signal) => (AppStatus::Signalled(signal), 128 + signal),
            };
            let end = AppEnd {
                status: ended,
                sent: sent(),
            };
            if let Ok(json) = serde_json::to_vec(&end) {
                let _ = status.write_all(&json);
            }
            return code;
        }
    }
}
