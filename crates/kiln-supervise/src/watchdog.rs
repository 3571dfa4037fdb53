//! Whether the controller answers: one that lives and does nothing would replace no instance, and nobody would notice.
//!
//! Any answer to a request over its own socket will do. Time counts only while the supervisor itself looks: what passes while
//! the machine sleeps, or while the supervisor is stopped, is no silence of the controller.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The path is answered by 404 by a controller that does not know it, which is an answer.
const QUESTION: &[u8] = b"GET /v1/ping HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n";
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The most of a time between two looks that counts.
const LOOK: Duration = Duration::from_secs(2);

/// How long a controller may be silent before it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    /// Once it has answered. Generous, because a disk may take long to sync.
    pub answer: Duration,
    /// From its start to its first answer: it reads its journal and looks at every instance before it answers.
    pub start: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            start: Duration::from_secs(300),
        }
    }
}

/// What is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    /// It did not answer for so long.
    Silent(Duration),
    /// It answered before, and has no socket any more.
    Unreachable,
}

pub(super) struct Watchdog {
    socket: PathBuf,
    limits: WatchLimits,
    asked: Option<UnixStream>,
    next_question: Instant,
    looked_at: Instant,
    silent: Duration,
    has_answered: bool,
}

impl Watchdog {
    /// `socket`: the controller's.
    pub(super) fn new(socket: PathBuf, limits: WatchLimits, now: Instant) -> Self {
        Self {
            socket,
            limits,
            asked: None,
            next_question: now,
            looked_at: now,
            silent: Duration::ZERO,
            has_answered: false,
        }
    }

    /// Another controller is watched from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.asked = None;
        self.next_question = now;
        self.looked_at = now;
        self.silent = Duration::ZERO;
        self.has_answered = false;
    }

    /// Readable when the answer has come.
    pub(super) fn question(&self) -> Option<BorrowedFd<'_>> {
        self.asked.as_ref().map(AsFd::as_fd)
    }

    /// Somebody removed files of `run/`: whether that of its socket is among them.
    pub(super) fn is_unreachable(&self) -> bool {
        !self.socket.exists()
    }

    /// Reads the answer, as far as it is there.
    pub(super) fn handle_readable(&mut self) {
        let Some(stream) = &mut self.asked else {
            return;
        };
        match stream.read(&mut [0; 512]) {
            Ok(0) => self.asked = None,
            Ok(_) => {
                self.asked = None;
                self.has_answered = true;
                self.silent = Duration::ZERO;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.asked = None,
        }
    }

    /// Asks if it is time to, and says what the silence so far means. Call it at least every two seconds.
    pub(super) fn look(&mut self, now: Instant) -> Verdict {
        self.silent += now.saturating_duration_since(self.looked_at).min(LOOK);
        self.looked_at = now;
        if now >= self.next_question && self.asked.is_none() {
            // One that starts is asked at each look.
            if self.has_answered {
                self.next_question = now + ASK_EVERY.min(self.limits.answer / 4);
            }
            match ask(&self.socket) {
                Ok(asked) => self.asked = Some(asked),
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.has_answered => {
                    return Verdict::Unreachable;
                }
                // It has yet to make its socket, or its queue is full.
                Err(_) => {}
            }
        }
        let limit = if self.has_answered {
            self.limits.answer
        } else {
            self.limits.start
        };
        if self.silent >= limit {
            Verdict::Silent(self.silent)
        } else {
            Verdict::Wait
        }
    }
}

/// Never waits: a process that is stopped has its queue full sooner or later.
fn ask(socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let descriptor = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&descriptor, &SocketAddrUnix::new(socket)?)?;
    let mut stream = UnixStream::from(descriptor);
    stream.write_all(QUESTION)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIMITS: WatchLimits = WatchLimits {
        answer: Duration::from_secs(30),
        start: Duration::from_secs(300),
    };

    fn second(now: &mut Instant) -> Instant {
        *now += Duration::from_secs(1);
        *now
    }

    #[test]
    fn one_that_answers_is_left_alone_and_one_that_stops_answering_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kiln.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(path.clone(), LIMITS, now);
        for _ in 0..100 {
            assert_eq!(watchdog.look(second(&mut now)), Verdict::Wait);
            if watchdog.question().is_some() {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; QUESTION.len()];
                stream.read_exact(&mut question).unwrap();
                assert_eq!(question, QUESTION);
                stream.write_all(b"HTTP/1.1 404 Not Found\r\n").unwrap();
                watchdog.handle_readable();
            }
        }
        assert!(watchdog.has_answered);
        // From now on it accepts nothing, as one that is stopped.
        let silent = (1..).find(|_| watchdog.look(second(&mut now)) != Verdict::Wait);
        assert!((25..=30).contains(&silent.unwrap()), "{silent:?}");
        watchdog.begin(now);
        assert_eq!(watchdog.look(second(&mut now)), Verdict::Wait);
    }

    #[test]
    fn one_that_starts_has_longer_and_needs_no_socket_yet() {
        let folder = tempfile::tempdir().unwrap();
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(folder.path().join("none"), LIMITS, now);
        let silent = (1..).find(|_| watchdog.look(second(&mut now)) != Verdict::Wait);
        assert_eq!(silent, Some(300));
    }

    #[test]
    fn one_whose_socket_is_gone_is_told_at_the_next_question() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kiln.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(path.clone(), LIMITS, now);
        watchdog.look(now);
        listener.accept().unwrap().0.write_all(b"HTTP/1.1").unwrap();
        watchdog.handle_readable();
        std::fs::remove_file(path).unwrap();
        let told = (1..10).find(|_| watchdog.look(second(&mut now)) == Verdict::Unreachable);
        assert_eq!(told, Some(1));
    }

    #[test]
    fn a_time_in_which_nobody_looked_is_no_silence() {
        let folder = tempfile::tempdir().unwrap();
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(folder.path().join("none"), LIMITS, now);
        now += Duration::from_secs(3600);
        assert_eq!(watchdog.look(now), Verdict::Wait);
    }
}
