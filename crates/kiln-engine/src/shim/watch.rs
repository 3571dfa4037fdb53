//! An instance while it runs: its output, requests to stop it, its end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use kiln_fs::clock;
use kiln_model::{ExitReason, ExitRecord};
use rustix::event::{PollFd, PollFlags, poll};

use super::now;
use super::start::Live;
use crate::children::{self, Ended};
use crate::container;
use crate::init::{AppEnd, AppStatus};
use crate::logs::{Splitter, Writer};
use crate::record;
use crate::sys;

/// Of a stop that names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// What is killed may still be in an uninterruptible wait: how often it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Once the instance has ended, what its pipes still hold is there at once.
const DRAIN: Duration = Duration::from_millis(20);
/// How often the kernel's kills for the memory limit are counted.
const COUNT_KILLS: Duration = Duration::from_secs(5);
/// An end so long after such a kill, at most, is put down to it.
const KILL_EXPLAINS: Duration = Duration::from_secs(5);
/// As much as a pipe holds.
const CHUNK: usize = 64 * 1024;

struct Output {
    pipe: OwnedFd,
    is_stderr: bool,
    splitter: Splitter,
}

/// When the instance is killed.
struct Stop {
    at: Duration,
    killed: bool,
}

/// Writes the log, and stops the instance when asked, until it has ended.
pub(super) fn to_the_end(live: Live, folder: &Path) -> ExitRecord {
    let Live {
        running: _,
        group,
        init,
        stdout,
        stderr,
        status,
        signals,
        stop_signal,
        memory,
        log_max_bytes,
    } = live;
    let mut log = Writer::open(folder, log_max_bytes).ok();
    let output = |pipe, is_stderr| Output {
        pipe,
        is_stderr,
        splitter: Splitter::default(),
    };
    let mut outputs = vec![output(stdout, false), output(stderr, true)];
    let mut chunk = vec![0; CHUNK];
    let mut kills = MemoryKills::default();
    let mut stop: Option<Stop> = None;
    let mut ended: Option<Ended> = None;
    while ended.is_none() || !outputs.is_empty() {
        let timeout = wait_for(ended.is_some(), stop.as_ref(), clock::boottime());
        let mut polled: Vec<PollFd<'_>> = outputs
            .iter()
            .map(|output| PollFd::new(&output.pipe, PollFlags::IN))
            .collect();
        polled.push(PollFd::new(&signals, PollFlags::IN));
        let timeout = timeout.try_into().ok();
        let count = poll(&mut polled, timeout.as_ref()).unwrap_or(0);
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        outputs.retain_mut(|output| {
            ready.next() != Some(true) || output.read_on(&mut chunk, &mut log)
        });
        while let Some(received) = sys::read_signal(&signals) {
            if received.signal == libc::SIGTERM {
                let grace = received
                    .value
                    .and_then(|millis| u64::try_from(millis).ok())
                    .map_or_else(|| grace_in(folder), Duration::from_millis);
                if stop.is_none() {
                    let _ = sys::kill(init, stop_signal);
                }
                begin_stop(&mut stop, clock::boottime() + grace);
            }
        }
        if ended.is_none()
            && let Some(stop) = &mut stop
            && clock::boottime() >= stop.at
        {
            let _ = sys::kill(init, libc::SIGKILL);
            stop.killed = true;
        }
        while let Ok(Some((pid, how))) = children::reap(false) {
            if pid == init {
                ended = Some(how);
            }
        }
        kills.count(clock::boottime(), || group.oom_kills());
        // What the container's processes held is closed with them; a pipe that stays open then is nobody's.
        if ended.is_some() && count == 0 {
            break;
        }
    }
    let told = container::read_all(&status).ok();
    let told: Option<AppEnd> = told.and_then(|told| serde_json::from_slice(&told).ok());
    let by_memory = kills.explain_end(clock::boottime(), group.oom_kills());
    ExitRecord {
        reason: reason(told.map(|told| told.status), ended, by_memory, memory),
        at: now(),
        last_lines: log.map(|log| log.last_lines()).unwrap_or_default(),
    }
}

/// How long nothing has to be done, unless something happens.
fn wait_for(ended: bool, stop: Option<&Stop>, now: Duration) -> Duration {
    match stop {
        _ if ended => DRAIN,
        Some(Stop { killed: true, .. }) => KILL_AGAIN,
        Some(Stop { at, .. }) => at.saturating_sub(now).min(COUNT_KILLS),
        None => COUNT_KILLS,
    }
}

/// A second request may make the grace shorter, never longer: whoever asks again because no answer came does not begin anew.
fn begin_stop(stop: &mut Option<Stop>, at: Duration) {
    match stop {
        Some(stop) => stop.at = stop.at.min(at),
        None => *stop = Some(Stop { at, killed: false }),
    }
}

fn reason(
    told: Option<AppStatus>,
    ended: Option<Ended>,
    by_memory: bool,
    limit: Option<u64>,
) -> ExitReason {
    match (told, ended) {
        (Some(AppStatus::Exited(0)), _) => ExitReason::Exited { code: 0 },
        _ if by_memory => ExitReason::OutOfMemory { limit },
        (Some(AppStatus::Exited(code)), _) => ExitReason::Exited { code },
        (Some(AppStatus::Signalled(signal)), _) => ExitReason::Signalled { signal },
        (None, Some(Ended::Exited(code))) => ExitReason::Exited { code },
        (None, Some(Ended::Signalled(signal))) => ExitReason::Signalled { signal },
        (None, None) => ExitReason::Lost,
    }
}

impl Output {
    /// False: it has ended.
    fn read_on(&mut self, chunk: &mut [u8], log: &mut Option<Writer>) -> bool {
        let read = match rustix::io::read(self.pipe.as_fd(), &mut *chunk) {
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => 0,
        };
        if let Some(log) = log.as_mut() {
            log.begin(now().0, self.is_stderr);
        }
        let mut line = |line: &[u8]| {
            // A full disk loses log lines, and nothing else.
            if let Some(log) = log.as_mut() {
                let _ = log.line(line);
            }
        };
        if read == 0 {
            self.splitter.finish(&mut line);
        } else {
            self.splitter.push(&chunk[..read], &mut line);
        }
        if let Some(log) = log.as_mut() {
            let _ = log.flush();
        }
        read > 0
    }
}

fn grace_in(folder: &Path) -> Duration {
    fs::read_to_string(folder.join(record::GRACE))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(DEFAULT_GRACE, Duration::from_millis)
}

/// Which ends are the memory limit's work. The kernel counts processes of the group that it killed, and the first may have
/// been a child that nobody missed, hours ago.
#[derive(Default)]
struct MemoryKills {
    count: u64,
    /// When it was last counted.
    counted: Duration,
    /// When it was last seen to have grown.
    grown: Option<Duration>,
}

impl MemoryKills {
    fn count(&mut self, now: Duration, count: impl FnOnce() -> u64) {
        if now.saturating_sub(self.counted) >= COUNT_KILLS {
            self.set(now, count());
        }
    }

    fn set(&mut self, now: Duration, count: u64) {
        self.counted = now;
        if count > self.count {
            self.count = count;
            self.grown = Some(now);
        }
    }

    /// Whether an end at this moment is put down to the memory limit.
    fn explain_end(&mut self, now: Duration, count: u64) -> bool {
        self.set(now, count);
        self.grown
            .is_some_and(|grown| now.saturating_sub(grown) <= KILL_EXPLAINS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_long_after_a_kill_for_memory_is_not_its_work() {
        let at = Duration::from_secs;
        let mut kills = MemoryKills::default();
        kills.count(at(100), || 0);
        kills.count(at(104), || unreachable!("it was counted just now"));
        assert!(!kills.explain_end(at(104), 0));
        // A child was killed, and the application went on.
        kills.count(at(110), || 1);
        assert!(kills.explain_end(at(112), 1));
        for second in (115..300).step_by(5) {
            kills.count(at(second), || 1);
        }
        assert!(!kills.explain_end(at(300), 1));
        // And then it was the application's turn.
        assert!(kills.explain_end(at(301), 2));
    }

    #[test]
    fn what_was_killed_and_has_not_ended_is_waited_for_at_leisure() {
        let at = Duration::from_secs;
        let mut stop = Stop {
            at: at(100),
            killed: false,
        };
        assert_eq!(wait_for(false, Some(&stop), at(98)), at(2));
        assert_eq!(wait_for(false, Some(&stop), at(101)), at(0));
        stop.killed = true;
        assert_eq!(wait_for(false, Some(&stop), at(102)), KILL_AGAIN);
        assert_eq!(wait_for(true, Some(&stop), at(102)), DRAIN);
    }

    #[test]
    fn who_asks_again_for_a_stop_does_not_begin_the_grace_anew() {
        let at = Duration::from_secs;
        let mut stop = None;
        begin_stop(&mut stop, at(100));
        begin_stop(&mut stop, at(130));
        assert_eq!(stop.as_ref().unwrap().at, at(100));
        begin_stop(&mut stop, at(90));
        assert_eq!(stop.unwrap().at, at(90));
    }

    #[test]
    fn an_application_that_ended_well_did_not_run_out_of_memory() {
        let reason = |status| reason(Some(status), None, true, Some(7));
        assert_eq!(reason(AppStatus::Exited(0)), ExitReason::Exited { code: 0 });
        let out = ExitReason::OutOfMemory { limit: Some(7) };
        assert_eq!(reason(AppStatus::Exited(1)), out);
        assert_eq!(reason(AppStatus::Signalled(9)), out);
    }
}
