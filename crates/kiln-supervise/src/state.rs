//! What the supervisor knows, and what several of its parts do with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_fs::ProcessId;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::SuperviseOptions;
use super::child::Child;
use super::handoff::Line;
use super::place::Place;
use super::restart::Restart;
use super::watchdog::Watchdog;

/// A successor that doesn't accept connections by then is ended.
pub(super) const SUCCESSION: Duration = Duration::from_secs(15);
/// An orderly end; then SIGKILL.
pub(super) const END: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Waits {
    Restart,
    Shutdown,
}

pub(super) struct Connection {
    pub(super) line: Line,
    pub(super) waits: Option<Waits>,
}

/// What the next supervisor needs to adopt.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Noted {
    pub(super) controller: Option<ProcessId>,
    pub(super) proxy: Option<ProcessId>,
}

#[derive(Clone, Copy)]
pub(super) enum Phase {
    Running,
    /// First the controller, so that it decides nothing about a proxy that goes away.
    EndingController {
        kill_at: Instant,
    },
    EndingProxies {
        kill_at: Instant,
    },
}

pub(super) struct Keeper {
    pub(super) options: SuperviseOptions,
    pub(super) descriptors: BTreeMap<String, OwnedFd>,
    pub(super) connections: Vec<Connection>,
    pub(super) controller: Option<Child>,
    pub(super) controller_restart: Restart,
    pub(super) proxy: Option<Child>,
    pub(super) proxy_restart: Restart,
    pub(super) successor: Option<Child>,
    pub(super) retiring: Vec<Child>,
    pub(super) adopting_until: Option<Instant>,
    pub(super) phase: Phase,
    pub(super) noted: Noted,
    pub(super) place: Place,
    pub(super) watchdog: Watchdog,
    pub(super) next_check: Instant,
    pub(super) next_log_check: Instant,
    /// When a proxy whose sockets are gone may be replaced again: not at once if the last try failed.
    pub(super) next_succession: Instant,
    /// What was said about the place last, so that it is not said each second.
    pub(super) mend_failed: Option<String>,
}

impl Keeper {
    pub(super) fn new(options: SuperviseOptions, place: Place, now: Instant) -> Self {
        let socket = options.root.join("run/kiln.sock");
        Self {
            watchdog: Watchdog::new(socket, options.watch, now),
            options,
            place,
            descriptors: BTreeMap::new(),
            connections: Vec::new(),
            controller: None,
            controller_restart: Restart::new(now),
            proxy: None,
            proxy_restart: Restart::new(now),
            successor: None,
            retiring: Vec::new(),
            adopting_until: None,
            phase: Phase::Running,
            noted: Noted::default(),
            next_check: now,
            next_log_check: now,
            next_succession: now,
            mend_failed: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.options.root.join(name)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Child> {
        self.controller
            .iter()
            .chain(&self.proxy)
            .chain(&self.successor)
            .chain(&self.retiring)
    }

    pub(super) fn start_proxy(&self) -> io::Result<Child> {
        Child::start(
            &self.options.exe,
            &self.options.proxy_args,
            &self.path("log/proxy.log"),
        )
    }

    pub(super) fn begin_end(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Running) {
            if let Some(child) = &self.controller {
                child.signal(Signal::TERM);
            }
            self.phase = Phase::EndingController { kill_at: now + END };
        }
    }
}
