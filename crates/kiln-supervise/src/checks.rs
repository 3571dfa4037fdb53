//! What the supervisor looks at once a second.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::say;
use super::state::{Keeper, Noted, SUCCESSION};
use super::watchdog::Verdict;

/// How long files of `run/` that somebody removed are gone at most, and how exactly the watchdog counts.
pub(super) const CHECK: Duration = Duration::from_secs(1);

impl Keeper {
    /// Looks whether others can find the supervisor, the proxy and the controller, and whether the controller answers.
    pub(super) fn check(&mut self, now: Instant) {
        let was_removed = self.mend_place();
        self.check_proxy(now);
        let Some(controller) = &self.controller else {
            return;
        };
        let verdict = match self.watchdog.look(now) {
            Verdict::Wait if was_removed && self.watchdog.is_unreachable() => Verdict::Unreachable,
            verdict => verdict,
        };
        let why = match verdict {
            Verdict::Wait => return,
            Verdict::Silent(silent) => format!("has not answered for {} s", silent.as_secs()),
            Verdict::Unreachable => "has lost its socket run/kiln.sock".to_owned(),
        };
        say(&format!(
            "the controller, pid {}, {why}: it is killed and started again",
            controller.pid()
        ));
        // It may be killed at any instant, and one that is stopped hears nothing else.
        controller.signal(Signal::KILL);
        self.watchdog.begin(now);
    }

    /// True: files of `run/` were gone.
    fn mend_place(&mut self) -> bool {
        match self.place.mend() {
            Ok(false) => self.mend_failed = None,
            Ok(true) => {
                say("files of run/ were gone: the lock and the socket are made anew");
                // It went with them.
                self.noted = Noted::default();
                return true;
            }
            Err(error) => {
                let said = format!("files of run/ are gone: {}", kiln_fs::with_causes(&error));
                if self.mend_failed.as_ref() != Some(&said) {
                    say(&said);
                    self.mend_failed = Some(said);
                }
            }
        }
        false
    }

    /// A proxy that no controller can find any more gets a successor, which makes its own files; it hands over in order.
    fn check_proxy(&mut self, now: Instant) {
        let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.is_ready) else {
            return;
        };
        let socket = self.path(&format!("run/proxy/{}.sock", proxy.pid()));
        if self.successor.is_some() || now < self.next_succession || socket.exists() {
            return;
        }
        self.next_succession = now + SUCCESSION;
        say(&format!(
            "{} is gone: the proxy is replaced",
            socket.display()
        ));
        match self.start_proxy() {
            Ok(child) => self.successor = Some(child),
            Err(error) => say(&format!("can't start the proxy: {error}")),
        }
    }
}
