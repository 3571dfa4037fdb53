//! The supervisor's socket: who keeps the listening descriptors, and who asks for them.
//!
//! One JSON line asks, one answers, in turn; a descriptor travels with its line as SCM_RIGHTS. Descriptors go by
//! name, the text of a [`SocketName`]. The controller binds and deposits, the proxy only fetches. A
//! socket that was listened on once thus never closes between two proxies, and its queue of connections not yet
//! accepted is never lost.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// A line is a name or a list of names.
const LINE_LIMIT: usize = 1024 * 1024;

/// Longer than the supervisor takes for anything that it answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A successor serves, or has failed, by then; so has an orderly end.
const LONG_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the supervisor of a data root listens.
pub fn socket_path(root: &Path) -> PathBuf {
    root.join("run/supervise.sock")
}

/// What a descriptor is for; its text is the descriptor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketName {
    /// A service's `listen`.
    Address(SocketAddr),
    /// Where connections of instances to any service come, redirected from the service's virtual address.
    Services,
    /// The name server of instances.
    NamesUdp,
    NamesTcp,
    /// That of instances that have no way out.
    ClosedNamesUdp,
}

impl SocketName {
    /// All that serve instances.
    pub const INSIDE: [Self; 4] = [
        Self::Services,
        Self::NamesUdp,
        Self::NamesTcp,
        Self::ClosedNamesUdp,
    ];

    /// What a descriptor of this name is for. `None`: a newer kiln's.
    pub fn parse(name: &str) -> Option<Self> {
        Self::INSIDE
            .into_iter()
            .find(|inside| inside.to_string() == name)
            .or_else(|| name.parse().ok().map(Self::Address))
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Services => f.write_str("services"),
            Self::NamesUdp => f.write_str("names/udp"),
            Self::NamesTcp => f.write_str("names/tcp"),
            Self::ClosedNamesUdp => f.write_str("closed-names/udp"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub(crate) enum Ask {
    Deposit {
        name: String,
    },
    Fetch {
        name: String,
    },
    Names,
    Remove {
        name: String,
    },
    /// A proxy accepts connections: whoever was there before it may go.
    Ready {
        pid: u32,
    },
    RestartProxy,
    Shutdown,
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Answer {
    Done,
    /// With the descriptor.
    Descriptor,
    Missing,
    Names {
        names: Vec<String>,
    },
    Status {
        status: SupervisorStatus,
    },
    Failed {
        reason: String,
    },
}

/// What the supervisor says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorStatus {
    pub pid: u32,
    /// `None` between an end and the next start.
    pub controller: Option<u32>,
    pub proxy: Option<u32>,
    /// Proxies that finish what they have in flight.
    pub retiring: Vec<u32>,
    /// How often each was started again since the supervisor started.
    pub controller_restarts: u64,
    pub proxy_restarts: u64,
    pub descriptors: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    #[error("no supervisor answers at {path}: start it with `kiln up` or `kiln supervise`")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the supervisor's socket failed: see the supervisor's log and try again")]
    Socket(#[source] io::Error),
    #[error("the supervisor closed the connection: see the supervisor's log and try again")]
    Closed,
    #[error(
        "the supervisor answered what this version doesn't understand: restart the supervisor with this version"
    )]
    Answer(#[source] serde_json::Error),
    #[error(
        "the supervisor answered something else than was asked: restart the supervisor with this version"
    )]
    Unexpected,
    #[error("the supervisor refused: {reason}")]
    Refused { reason: String },
}

/// The asking side. Blocking; one question at a time.
#[derive(Debug)]
pub struct Client {
    line: Line,
}

impl Client {
    pub fn connect(root: &Path) -> Result<Self, HandoffError> {
        let path = socket_path(root);
        match UnixStream::connect(&path) {
            Ok(stream) => Self::over(stream),
            Err(source) => Err(HandoffError::Connect { path, source }),
        }
    }

    /// Over a connection that the supervisor made, when it adopts a proxy.
    pub fn over(stream: UnixStream) -> Result<Self, HandoffError> {
        stream
            .set_nonblocking(false)
            .map_err(HandoffError::Socket)?;
        stream
            .set_write_timeout(Some(ANSWER_TIMEOUT))
            .map_err(HandoffError::Socket)?;
        Ok(Self {
            line: Line::new(stream),
        })
    }

    fn ask(
        &mut self,
        ask: &Ask,
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<(Answer, Option<OwnedFd>), HandoffError> {
        self.line
            .stream
            .set_read_timeout(Some(timeout))
            .map_err(HandoffError::Socket)?;
        self.line
            .send(ask, descriptor)
            .map_err(HandoffError::Socket)?;
        loop {
            if let Some((text, descriptor)) = self.line.take() {
                return match serde_json::from_slice(&text).map_err(HandoffError::Answer)? {
                    Answer::Failed { reason } => Err(HandoffError::Refused { reason }),
                    answer => Ok((answer, descriptor)),
                };
            }
            if !self.line.receive().map_err(HandoffError::Socket)? {
                return Err(HandoffError::Closed);
            }
        }
    }

    fn done(
        &mut self,
        ask: &Ask,
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<(), HandoffError> {
        match self.ask(ask, descriptor, timeout)? {
            (Answer::Done, _) => Ok(()),
            _ => Err(HandoffError::Unexpected),
        }
    }

    /// Gives the supervisor a copy to keep. One of that name that it had is replaced.
    pub fn deposit(&mut self, name: &str, descriptor: &impl AsFd) -> Result<(), HandoffError> {
        let ask = Ask::Deposit {
            name: name.to_owned(),
        };
        self.done(&ask, Some(descriptor.as_fd()), ANSWER_TIMEOUT)
    }

    /// A copy of the named descriptor; `None` when the supervisor has none of that name.
    pub fn fetch(&mut self, name: &str) -> Result<Option<OwnedFd>, HandoffError> {
        match self.ask(
            &Ask::Fetch {
                name: name.to_owned(),
            },
            None,
            ANSWER_TIMEOUT,
        )? {
            (Answer::Descriptor, Some(descriptor)) => Ok(Some(descriptor)),
            (Answer::Missing, _) => Ok(None),
            _ => Err(HandoffError::Unexpected),
        }
    }

    /// Of every descriptor that it keeps, in order.
    pub fn names(&mut self) -> Result<Vec<String>, HandoffError> {
        match self.ask(&Ask::Names, None, ANSWER_TIMEOUT)? {
            (Answer::Names { names }, _) => Ok(names),
            _ => Err(HandoffError::Unexpected),
        }
    }

    /// Closes the supervisor's copy. No error when it has none of that name.
    pub fn remove(&mut self, name: &str) -> Result<(), HandoffError> {
        self.done(
            &Ask::Remove {
                name: name.to_owned(),
            },
            None,
            ANSWER_TIMEOUT,
        )
    }

    /// Says that the proxy `pid` accepts connections.
    pub fn ready(&mut self, pid: u32) -> Result<(), HandoffError> {
        self.done(&Ask::Ready { pid }, None, ANSWER_TIMEOUT)
    }

    /// Starts a successor of the proxy. Returns when it accepts connections and its predecessor was told to
    /// retire; when it could not start, that is the error, and the predecessor goes on.
    pub fn restart_proxy(&mut self) -> Result<(), HandoffError> {
        self.done(&Ask::RestartProxy, None, LONG_TIMEOUT)
    }

    /// Ends the controller, then the proxy, then the supervisor itself; returns when they have ended.
    /// Instances go on: stop them before, through the controller.
    pub fn shutdown(&mut self) -> Result<(), HandoffError> {
        self.done(&Ask::Shutdown, None, LONG_TIMEOUT)
    }

    pub fn status(&mut self) -> Result<SupervisorStatus, HandoffError> {
        match self.ask(&Ask::Status, None, ANSWER_TIMEOUT)? {
            (Answer::Status { status }, _) => Ok(status),
            _ => Err(HandoffError::Unexpected),
        }
    }
}

/// One end of the socket: lines, and the descriptors that came with them.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) stream: UnixStream,
    received: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            descriptor: None,
        }
    }

    /// Writes the whole line; the descriptor goes with its first byte.
    pub(crate) fn send(
        &mut self,
        value: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut text = serde_json::to_vec(value)?;
        text.push(b'\n');
        let mut rest: &[u8] = &text;
        let mut descriptor = descriptor.as_slice();
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptor.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptor))
            {
                return Err(io::Error::other(
                    "no room for a descriptor in the control message",
                ));
            }
            let sent = sendmsg(
                &self.stream,
                &[io::IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(sent) => {
                    rest = &rest[sent..];
                    descriptor = &[];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there, once. `false`: the other end closed.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let buffers = &mut [io::IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // One goes with one line; one more than that is closed here.
                self.descriptor = descriptors.last();
            }
        }
        self.received.extend_from_slice(&bytes[..received.bytes]);
        if self.received.len() > LINE_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line longer than 1 MiB",
            ));
        }
        Ok(received.bytes > 0)
    }

    /// The next whole line that was received.
    pub(crate) fn take(&mut self) -> Option<(Vec<u8>, Option<OwnedFd>)> {
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        let rest = self.received.split_off(end + 1);
        let text = std::mem::replace(&mut self.received, rest);
        Some((text, self.descriptor.take()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_socket_says_what_it_is_for() {
        let outside =
            ["127.0.0.1:80", "[::1]:80"].map(|at| SocketName::Address(at.parse().unwrap()));
        for name in outside.into_iter().chain(SocketName::INSIDE) {
            assert_eq!(SocketName::parse(&name.to_string()), Some(name));
        }
        assert_eq!(SocketName::parse("metrics/tcp"), None);
    }
}
