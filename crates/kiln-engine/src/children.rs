//! The ends of this process's children.

use std::io;

use rustix::process::{WaitOptions, wait};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signalled(i32),
}

/// Reaps one child that has ended; `Ok(None)`: none has.
pub(crate) fn reap(block: bool) -> io::Result<Option<(i32, Ended)>> {
    let options = if block {
        WaitOptions::empty()
    } else {
        WaitOptions::NOHANG
    };
    let Some((pid, status)) = wait(options)? else {
        return Ok(None);
    };
    let ended = match status.terminating_signal() {
        Some(signal) => Ended::Signalled(signal),
        None => Ended::Exited(status.exit_status().unwrap_or(0)),
    };
    Ok(Some((pid.as_raw_nonzero().get(), ended)))
}
