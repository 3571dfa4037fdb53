//! The poll loop.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_fs::{LockFile, ProcessId, is_locked, replace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::answering::{Connection, Waits};
use super::child::{Child, End, cap_log};
use super::{SuperviseError, SuperviseOptions, say};
use crate::handoff::{Answer, Line, socket_path};

/// A child that lived as long is started again at once; one that didn't waits, longer each time.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Of one that was killed, however often: it is back within a second.
const LONGEST_DELAY_KILLED: Duration = Duration::from_millis(500);
/// How long an adopted proxy has to give its descriptors, before the controller starts without.
const ADOPTION: Duration = Duration::from_secs(3);
/// A successor that doesn't accept connections by then is ended.
const SUCCESSION: Duration = Duration::from_secs(15);
/// An orderly end; then SIGKILL.
const END: Duration = Duration::from_secs(10);
const LOG_CHECK: Duration = Duration::from_secs(5);

/// What the next supervisor needs to adopt.
#[derive(Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Noted {
    controller: Option<ProcessId>,
    proxy: Option<ProcessId>,
}

/// When a child that ended is started again.
pub(super) struct Restart {
    at: Option<Instant>,
    delay: Duration,
    pub(super) count: u64,
}

impl Restart {
    fn new(at: Instant) -> Self {
        Self {
            at: Some(at),
            delay: Duration::ZERO,
            count: 0,
        }
    }

    fn plan(&mut self, now: Instant, lived: Duration, gave_up: bool) {
        if lived >= STEADY {
            self.delay = Duration::ZERO;
        }
        let longest = if gave_up {
            LONGEST_DELAY
        } else {
            LONGEST_DELAY_KILLED
        };
        self.at = Some(now + self.delay.min(longest));
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        self.count += 1;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
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
    pub(super) next_log_check: Instant,
}

/// Runs until SIGTERM, SIGINT or a `shutdown` over its socket.
pub fn run(options: SuperviseOptions) -> Result<(), SuperviseError> {
    let root = options.root.clone();
    for folder in [
        root.clone(),
        root.join("run"),
        root.join("run/proxy"),
        root.join("log"),
    ] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| SuperviseError::File {
                action: "make the folder",
                path: folder,
                source,
            })?;
    }
    let _lock = lock(&root)?;
    let (signals, signal_end) = UnixStream::pair().map_err(SuperviseError::Signals)?;
    signals
        .set_nonblocking(true)
        .map_err(SuperviseError::Signals)?;
    let (hangups, hangup_end) = UnixStream::pair().map_err(SuperviseError::Signals)?;
    hangups
        .set_nonblocking(true)
        .map_err(SuperviseError::Signals)?;
    for signal in [SIGTERM, SIGINT] {
        let end = signal_end.try_clone().map_err(SuperviseError::Signals)?;
        signal_hook::low_level::pipe::register(signal, end).map_err(SuperviseError::Signals)?;
    }
    signal_hook::low_level::pipe::register(SIGHUP, hangup_end).map_err(SuperviseError::Signals)?;

    let path = socket_path(&root);
    let listener = bind(&path)?;
    let mut keeper = Keeper::new(options, Instant::now());
    keeper.adopt();
    let ended = keeper.keep(&listener, &signals, &hangups);
    // A supervisor that fails leaves the others running: the next one adopts them.
    let _ = std::fs::remove_file(&path);
    ended
}

fn lock(root: &Path) -> Result<LockFile, SuperviseError> {
    let path = root.join("run/supervise.lock");
    let fail = |source| SuperviseError::File {
        action: "lock",
        path: path.clone(),
        source,
    };
    let Some(lock) = LockFile::try_take(&path).map_err(fail)? else {
        let pid = std::fs::read_to_string(&path).map_err(fail)?;
        return Err(SuperviseError::AlreadyRunning {
            root: root.to_owned(),
            pid: pid.trim().to_owned(),
        });
    };
    let mut file = lock.file();
    file.set_len(0).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(lock)
}

/// Under a temporary name first: it takes connections from the moment it has its own.
fn bind(path: &Path) -> Result<UnixListener, SuperviseError> {
    let fail = |source| SuperviseError::File {
        action: "listen on",
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(fail)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)?;
    Ok(listener)
}

impl Keeper {
    fn new(options: SuperviseOptions, now: Instant) -> Self {
        Self {
            options,
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
            next_log_check: now,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.root.join(name)
    }

    /// Finds what an earlier supervisor left running.
    fn adopt(&mut self) {
        let noted: Noted = std::fs::read(self.path("run/supervise.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        self.controller = noted.controller.as_ref().and_then(adopted);
        let mut proxies: Vec<Child> = living_proxies(&self.path("run/proxy"))
            .into_iter()
            .filter_map(|pid| Child::watch(pid).ok().flatten())
            .collect();
        proxies.sort_by_key(|child| child.id().start_time);
        let current = proxies
            .iter()
            .position(|child| Some(child.id()) == noted.proxy.as_ref())
            .or_else(|| proxies.len().checked_sub(1));
        self.proxy = current.map(|index| proxies.remove(index));
        for other in proxies {
            other.signal(Signal::TERM);
            self.retiring.push(other);
        }
        if let Some(child) = &self.controller {
            say(&format!("adopted the controller, pid {}", child.pid()));
        }
        let Some(proxy) = &self.proxy else { return };
        let pid = proxy.pid();
        say(&format!("adopted the proxy, pid {pid}"));
        match UnixStream::connect(self.path(&format!("run/proxy/{pid}.adopt"))) {
            Ok(stream) if stream.set_nonblocking(true).is_ok() => {
                self.connections.push(Connection {
                    line: Line::new(stream),
                    waits: None,
                });
                self.adopting_until = Some(Instant::now() + ADOPTION);
            }
            _ => {
                say(&format!(
                    "the proxy, pid {pid}, can't be asked for its descriptors: it is replaced"
                ));
                proxy.signal(Signal::TERM);
                self.retiring.extend(self.proxy.take());
            }
        }
    }

    fn keep(
        &mut self,
        listener: &UnixListener,
        signals: &UnixStream,
        hangups: &UnixStream,
    ) -> Result<(), SuperviseError> {
        loop {
            let now = Instant::now();
            self.reap(now);
            if self.step(now) {
                return Ok(());
            }
            self.note();
            let ready = self.wait(listener, signals, hangups, now)?;
            let Ready {
                signal,
                hangup,
                connect,
                connections,
            } = ready;
            if signal {
                drained(signals);
                self.begin_end(Instant::now());
            }
            if hangup {
                drained(hangups);
                self.execute_anew()?;
            }
            for index in connections.into_iter().rev() {
                if !self.talk(index) {
                    self.connections.swap_remove(index);
                }
            }
            if connect {
                while let Ok((stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() {
                        self.connections.push(Connection {
                            line: Line::new(stream),
                            waits: None,
                        });
                    }
                }
            }
        }
    }

    fn wait(
        &self,
        listener: &UnixListener,
        signals: &UnixStream,
        hangups: &UnixStream,
        now: Instant,
    ) -> Result<Ready, SuperviseError> {
        let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![
            read(signals.as_fd()),
            read(hangups.as_fd()),
            read(listener.as_fd()),
        ];
        fds.extend(
            self.connections
                .iter()
                .map(|connection| read(connection.line.stream.as_fd())),
        );
        fds.extend(self.children().map(|child| read(child.pidfd())));
        let wait = self.timeout().saturating_duration_since(now);
        let wait = Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(SuperviseError::Poll(error.into())),
        }
        let is_ready = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready {
            signal: is_ready(0),
            hangup: is_ready(1),
            connect: is_ready(2),
            connections: (0..self.connections.len())
                .filter(|index| is_ready(index + 3))
                .collect(),
        })
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        self.controller
            .iter()
            .chain(&self.proxy)
            .chain(&self.successor)
            .chain(&self.retiring)
    }

    fn timeout(&self) -> Instant {
        let phase = match self.phase {
            Phase::Running => None,
            Phase::EndingController { kill_at } | Phase::EndingProxies { kill_at } => Some(kill_at),
        };
        let restarts = match self.phase {
            Phase::Running => [self.controller_restart.at, self.proxy_restart.at],
            _ => [None, None],
        };
        [
            phase,
            self.adopting_until,
            self.successor
                .as_ref()
                .map(|child| child.started + SUCCESSION),
        ]
        .into_iter()
        .chain(restarts)
        .flatten()
        .fold(self.next_log_check, Instant::min)
    }

    /// Notices who has ended.
    fn reap(&mut self, now: Instant) {
        if let Some((child, End { how, gave_up })) = take_ended(&mut self.controller) {
            say(&format!("the controller, pid {}, {how}", child.pid()));
            self.controller_restart
                .plan(now, now - child.started, gave_up);
        }
        if let Some((child, End { how, gave_up })) = take_ended(&mut self.proxy) {
            say(&format!("the proxy, pid {}, {how}", child.pid()));
            self.adopting_until = None;
            self.proxy = self.successor.take();
            if self.proxy.is_none() {
                self.proxy_restart.plan(now, now - child.started, gave_up);
            }
        }
        if self
            .successor
            .as_ref()
            .is_some_and(|child| now >= child.started + SUCCESSION)
            && let Some(child) = &self.successor
        {
            child.signal(Signal::KILL);
        }
        if let Some((child, End { how, .. })) = take_ended(&mut self.successor) {
            let reason = format!(
                "the new proxy, pid {}, {how} before it served: see log/proxy.log",
                child.pid()
            );
            say(&reason);
            self.answer_waiting(Waits::Restart, &Answer::Failed { reason });
        }
        self.retiring.retain(|child| child.ended().is_none());
    }

    /// Does what is due. `true`: all has ended.
    fn step(&mut self, now: Instant) -> bool {
        if now >= self.next_log_check {
            self.next_log_check = now + LOG_CHECK;
            for log in ["log/controller.log", "log/proxy.log"] {
                if let Err(error) = cap_log(&self.path(log)) {
                    say(&format!("can't cut {log}: {error}"));
                }
            }
        }
        if self.adopting_until.is_some_and(|until| now >= until) {
            self.adopting_until = None;
            say("the adopted proxy did not give its descriptors in time");
        }
        match self.phase {
            Phase::Running => self.start_missing(now),
            Phase::EndingController { kill_at } => match &self.controller {
                Some(child) if now >= kill_at => child.signal(Signal::KILL),
                Some(_) => {}
                None => {
                    for child in self
                        .proxy
                        .iter()
                        .chain(&self.successor)
                        .chain(&self.retiring)
                    {
                        child.signal(Signal::INT);
                    }
                    self.phase = Phase::EndingProxies { kill_at: now + END };
                }
            },
            Phase::EndingProxies { kill_at } => {
                if now >= kill_at {
                    self.children().for_each(|child| child.signal(Signal::KILL));
                }
            }
        }
        if matches!(self.phase, Phase::EndingProxies { .. }) && self.children().next().is_none() {
            self.note();
            self.answer_waiting(Waits::Shutdown, &Answer::Done);
            return true;
        }
        false
    }

    fn start_missing(&mut self, now: Instant) {
        if self.proxy.is_none() && self.proxy_restart.is_due(now) {
            match self.start_proxy() {
                Ok(child) => {
                    self.proxy = Some(child);
                    self.proxy_restart.at = None;
                }
                Err(error) => {
                    say(&format!("can't start the proxy: {error}"));
                    self.proxy_restart.plan(now, Duration::ZERO, true);
                }
            }
        }
        if self.controller.is_none()
            && self.adopting_until.is_none()
            && self.controller_restart.is_due(now)
        {
            let log = self.path("log/controller.log");
            match Child::start(&self.options.exe, &self.options.controller_args, &log) {
                Ok(child) => {
                    self.controller = Some(child);
                    self.controller_restart.at = None;
                }
                Err(error) => {
                    say(&format!("can't start the controller: {error}"));
                    self.controller_restart.plan(now, Duration::ZERO, true);
                }
            }
        }
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

    /// Writes down whom the next supervisor is to adopt.
    fn note(&mut self) {
        let noted = Noted {
            controller: self.controller.as_ref().map(|child| child.id().clone()),
            proxy: self.proxy.as_ref().map(|child| child.id().clone()),
        };
        if noted == self.noted {
            return;
        }
        let path = self.path("run/supervise.json");
        let written = serde_json::to_vec(&noted)
            .map_err(io::Error::from)
            .and_then(|bytes| replace(&path, &bytes));
        match written {
            Ok(()) => self.noted = noted,
            Err(error) => say(&format!("can't write {}: {error}", path.display())),
        }
    }

    /// The descriptors are lost by it, and come back from the proxy: without one, nothing is done.
    fn execute_anew(&mut self) -> Result<(), SuperviseError> {
        if self.proxy.is_none() || !matches!(self.phase, Phase::Running) {
            say("SIGHUP: not now, no proxy is there to keep the descriptors meanwhile");
            return Ok(());
        }
        let path = self.options.exe.clone();
        say(&format!("executing {} anew", path.display()));
        let source = std::process::Command::new(&path)
            .args(std::env::args_os().skip(1))
            .exec();
        Err(SuperviseError::Exec { path, source })
    }
}

struct Ready {
    signal: bool,
    hangup: bool,
    connect: bool,
    connections: Vec<usize>,
}

fn adopted(id: &ProcessId) -> Option<Child> {
    Child::adopt(id).ok().flatten()
}

fn take_ended(slot: &mut Option<Child>) -> Option<(Child, End)> {
    let end = slot.as_ref()?.ended()?;
    slot.take().map(|child| (child, end))
}

/// Empties the pipe of a signal that was seen.
fn drained(mut stream: &UnixStream) {
    let mut bytes = [0; 64];
    while matches!(stream.read(&mut bytes), Ok(1..)) {}
}

/// Proxies hold the lock of `PID.lock` while they live.
fn living_proxies(folder: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry
                .file_name()
                .to_str()?
                .strip_suffix(".lock")?
                .parse()
                .ok()?;
            is_locked(&entry.path()).ok()?.then_some(pid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_killed_again_and_again_is_back_within_a_second_and_who_gives_up_waits_longer() {
        let now = Instant::now();
        let waits = |gave_up| {
            let mut restart = Restart::new(now);
            (0..20)
                .map(|_| {
                    restart.plan(now, Duration::from_millis(1), gave_up);
                    restart.at.unwrap() - now
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(false)[0], Duration::ZERO);
        assert!(
            waits(false)
                .iter()
                .all(|wait| *wait < Duration::from_secs(1))
        );
        assert_eq!(waits(true)[0], Duration::ZERO);
        assert_eq!(*waits(true).last().unwrap(), LONGEST_DELAY);
        let mut restart = Restart::new(now);
        for _ in 0..20 {
            restart.plan(now, Duration::ZERO, true);
        }
        restart.plan(now, STEADY, true);
        assert_eq!(restart.at, Some(now));
    }
}
