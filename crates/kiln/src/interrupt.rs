//! Ctrl-C and SIGTERM: noted when they come, and looked at wherever a command waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::failure::Failure;

/// How soon an interruption is seen.
pub(crate) const TURN: Duration = Duration::from_millis(50);
/// What a step that was killed may take to clean up.
const GRACE: Duration = Duration::from_secs(3);

pub(crate) struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    pub(crate) fn catch() -> Result<Self, Failure> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&came)).map_err(Failure::Signals)?;
        }
        Ok(Self(came))
    }

    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What it asked for is being done: the next one is another.
    pub(crate) fn heed(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// `left` says what goes on and how to end it.
    pub(crate) fn check(&self, left: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.came() {
            return Err(Failure::Interrupted { left: left() });
        }
        Ok(())
    }

    /// Does `work`, a bake, on a thread of its own, and ends its step when this process is interrupted.
    pub(crate) fn during<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send,
        left: impl FnOnce() -> String,
    ) -> Result<T, Failure> {
        std::thread::scope(|scope| {
            // Dropped when the work is over, however it ended.
            let (working, over) = mpsc::channel::<()>();
            let worker = scope.spawn(move || {
                let _working = working;
                work()
            });
            while !self.came() && over.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {}
            if !self.came() {
                return worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            let interrupted = Failure::Interrupted { left: left() };
            let begun = Instant::now();
            let mut ending = false;
            while !worker.is_finished() {
                ending |= end_step();
                // Without a step it fetches or unpacks, which is left as it is. The store removes what was half
                // written when it is opened next, and the next bake the folders.
                let patience = if ending { GRACE } else { GRACE / 10 };
                if begun.elapsed() > patience {
                    crate::output::failure(&interrupted);
                    std::process::exit(interrupted.exit().code());
                }
                std::thread::sleep(TURN / 5);
            }
            Err(interrupted)
        })
    }
}

/// Kills the first processes of the steps' containers; who holds them cleans up after them. False: there is no step.
fn end_step() -> bool {
    let mut found = false;
    for holder in children(rustix::process::getpid()) {
        found = true;
        for init in children(holder) {
            // By its descriptor, and only if it is still the holder's: numbers are given again.
            if let Ok(process) = pidfd_open(init, PidfdFlags::empty())
                && children(holder).contains(&init)
            {
                // The only failure is that it has ended.
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }
    found
}

fn children(parent: Pid) -> Vec<Pid> {
    // One that has ended has none.
    std::fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero()))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw))
                .collect::<Vec<_>>()
        })
        .collect()
}
