//! The poll loop.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::checks::CHECK;
use super::child::{Child, End, cap_log};
use super::handoff::{Answer, Line};
use super::place::Place;
use super::state::{Connection, END, Keeper, Phase, SUCCESSION, Waits};
use super::{SuperviseError, SuperviseOptions, say};

const LOG_CHECK: Duration = Duration::from_secs(5);

/// Runs until SIGTERM, SIGINT or a `shutdown` over its socket.
pub fn run(options: SuperviseOptions) -> Result<(), SuperviseError> {
    let place = Place::take(&options.root)?;
    let signals = Signals::catch().map_err(SuperviseError::Signals)?;
    let mut keeper = Keeper::new(options, place, Instant::now());
    keeper.adopt();
    let ended = keeper.keep(&signals);
    keeper.place.leave();
    ended
}

/// Signals, as pipes that become readable.
struct Signals {
    end: UnixStream,
    hangup: UnixStream,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let pipe_of = |signals: &[i32]| -> io::Result<UnixStream> {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
            }
            Ok(read)
        };
        Ok(Self {
            end: pipe_of(&[SIGTERM, SIGINT])?,
            hangup: pipe_of(&[SIGHUP])?,
        })
    }
}

impl Keeper {
    fn keep(&mut self, signals: &Signals) -> Result<(), SuperviseError> {
        loop {
            let now = Instant::now();
            self.reap(now);
            if self.step(now) {
                return Ok(());
            }
            self.note();
            let ready = self.wait(signals, now)?;
            let Ready {
                signal,
                hangup,
                connect,
                answered,
                connections,
            } = ready;
            if signal {
                drained(&signals.end);
                self.begin_end(Instant::now());
            }
            if hangup {
                drained(&signals.hangup);
                self.execute_anew()?;
            }
            if answered {
                self.watchdog.handle_readable();
            }
            for index in connections.into_iter().rev() {
                if !self.talk(index) {
                    self.connections.swap_remove(index);
                }
            }
            if connect {
                while let Ok((stream, _)) = self.place.listener.accept() {
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

    fn wait(&self, signals: &Signals, now: Instant) -> Result<Ready, SuperviseError> {
        let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![
            read(signals.end.as_fd()),
            read(signals.hangup.as_fd()),
            read(self.place.listener.as_fd()),
        ];
        fds.extend(
            self.connections
                .iter()
                .map(|connection| read(connection.line.stream.as_fd())),
        );
        fds.extend(self.watchdog.question().map(read));
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
            answered: self.watchdog.question().is_some() && is_ready(3 + self.connections.len()),
            connections: (0..self.connections.len())
                .filter(|index| is_ready(index + 3))
                .collect(),
        })
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
        .fold(self.next_check, Instant::min)
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
        if now >= self.next_check {
            self.next_check = now + CHECK;
            if matches!(self.phase, Phase::Running) {
                self.check(now);
            }
        }
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
                    self.watchdog.begin(now);
                }
                Err(error) => {
                    say(&format!("can't start the controller: {error}"));
                    self.controller_restart.plan(now, Duration::ZERO, true);
                }
            }
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
    /// The controller answered the watchdog.
    answered: bool,
    connections: Vec<usize>,
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
