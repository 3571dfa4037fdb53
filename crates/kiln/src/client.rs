//! The client of the daemon's HTTP API, which is on a unix socket.
//!
//! It is hyper's, for callers that are not asynchronous: each call has a small runtime of its own, which works only
//! while somebody waits for the answer. Every wait has a limit, because a controller that was stopped accepts
//! connections (the kernel does) and never answers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kiln_model::api::{ApiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::Failure;

/// A whole answer: the history of many services stays well below.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// How long a call may take that the controller answers from memory: it does one thing after the other, and writes
/// its journal to a disk that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a call may take that reads the journal, or that checks what it is asked for before it answers.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
pub(crate) struct Client {
    root: PathBuf,
}

impl Client {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Asks for what the controller has in memory.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, Vec::new(), PATIENCE)?.value()
    }

    /// Asks for what the controller has to read first.
    pub(crate) fn get_slow<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, Vec::new(), LONG_PATIENCE)?
            .value()
    }

    pub(crate) fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        self.call(Method::POST, path, encode(body)?, PATIENCE)?
            .value()
    }

    /// A call without a body, whose answer has none.
    pub(crate) fn order(&self, path: &str) -> Result<(), Failure> {
        self.call(Method::POST, path, Vec::new(), LONG_PATIENCE)?
            .whole()
            .map(|_| ())
    }

    pub(crate) fn post_lines<B: Serialize>(&self, path: &str, body: &B) -> Result<Lines, Failure> {
        self.call(Method::POST, path, encode(body)?, LONG_PATIENCE)?
            .lines()
    }

    pub(crate) fn get_lines(&self, path: &str) -> Result<Lines, Failure> {
        self.call(Method::GET, path, Vec::new(), PATIENCE)?.lines()
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "kiln")
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Answer {
                what: error.to_string(),
            })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|source| self.socket_failed(source))?;
        let mut peer = None;
        let answered = within(&runtime, patience, self.exchange(request, &mut peer));
        let silence = Silence {
            root: self.root.clone(),
            patience,
            peer,
        };
        let (response, connection) = answered.ok_or_else(|| silence.failure())??;
        Ok(Answer {
            runtime,
            response,
            silence,
            connection,
        })
    }

    /// `peer`: the process that listens, as soon as it is known.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        peer: &mut Option<i32>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let stream = UnixStream::connect(self.root.join("run/kiln.sock"))
            .await
            .map_err(|source| self.socket_failed(source))?;
        *peer = stream
            .peer_cred()
            .ok()
            .and_then(|credentials| credentials.pid());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::BrokenOff)?;
        let connection = Connection(tokio::spawn(connection));
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| Failure::BrokenOff)?;
        Ok((response, connection))
    }

    fn socket_failed(&self, source: std::io::Error) -> Failure {
        match source.kind() {
            // The socket of a controller that was killed is still there, and nobody listens on it.
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::NotRunning {
                root: self.root.clone(),
            },
            // Its queue of connections is full: nobody accepts.
            ErrorKind::WouldBlock => Failure::Silent {
                root: self.root.clone(),
                seconds: 0,
                pid: None,
            },
            _ => Failure::Socket {
                root: self.root.clone(),
                source,
            },
        }
    }
}

fn encode<B: Serialize>(body: &B) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|error| Failure::Answer {
        what: error.to_string(),
    })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Answer {
        what: error.to_string(),
    })
}

/// What the future gives within that time. A timer can be made only inside the runtime.
fn within<F: Future>(runtime: &Runtime, patience: Duration, future: F) -> Option<F::Output> {
    runtime.block_on(async { timeout(patience, future).await.ok() })
}

/// Who does not answer, if nothing comes.
struct Silence {
    root: PathBuf,
    patience: Duration,
    peer: Option<i32>,
}

impl Silence {
    fn failure(&self) -> Failure {
        Failure::Silent {
            root: self.root.clone(),
            seconds: self.patience.as_secs(),
            pid: self.peer,
        }
    }
}

/// What reads from the socket, for as long as the answer is wanted. How it ends, the answer's body says too.
struct Connection(JoinHandle<hyper::Result<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer of which the head has come.
struct Answer {
    runtime: Runtime,
    response: Response<Incoming>,
    silence: Silence,
    connection: Connection,
}

impl Answer {
    /// The whole body of a good answer; any other is an error.
    fn whole(self) -> Result<Bytes, Failure> {
        let Self {
            runtime,
            response,
            silence,
            connection: _connection,
        } = self;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect();
        let body = within(&runtime, silence.patience, body)
            .ok_or_else(|| silence.failure())?
            .map_err(|_| Failure::BrokenOff)?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(Failure::Api(serde_json::from_slice(&body).unwrap_or_else(
            |_| ApiError {
                code: ErrorCode::Internal,
                message: format!(
                    "the controller answered {status}: {}",
                    String::from_utf8_lossy(&body)
                ),
            },
        )))
    }

    fn value<T: DeserializeOwned>(self) -> Result<T, Failure> {
        decode(&self.whole()?)
    }

    fn lines(self) -> Result<Lines, Failure> {
        if !self.response.status().is_success() {
            return match self.whole() {
                Err(failure) => Err(failure),
                Ok(_) => Err(Failure::BrokenOff),
            };
        }
        let Self {
            runtime,
            response,
            silence: _,
            connection,
        } = self;
        Ok(Lines {
            runtime,
            _connection: connection,
            body: response.into_body(),
            pending: Vec::new(),
        })
    }
}

/// What comes next in an answer of lines.
#[derive(Debug, PartialEq)]
pub(crate) enum Next<T> {
    Line(T),
    /// Nothing yet.
    Silence,
    End,
}

/// An answer that comes line by line, one JSON value each.
pub(crate) struct Lines {
    runtime: Runtime,
    _connection: Connection,
    body: Incoming,
    /// What came after the last whole line.
    pending: Vec<u8>,
}

impl Lines {
    /// Waits for the next line for at most `patience`.
    pub(crate) fn next<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> Result<Next<T>, Failure> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return decode(&line).map(Next::Line);
            }
            let Self {
                runtime,
                _connection: _,
                body,
                pending,
            } = self;
            match within(runtime, patience, body.frame()) {
                None => return Ok(Next::Silence),
                // A line without its end is no line.
                Some(None) if pending.is_empty() => return Ok(Next::End),
                Some(None | Some(Err(_))) => return Err(Failure::BrokenOff),
                Some(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        pending.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::JoinHandle;

    use super::*;

    /// A server that answers one request with the pieces it is given, one after the other.
    struct Server {
        client: Client,
        folder: tempfile::TempDir,
        pieces: Option<Sender<&'static [u8]>>,
        thread: JoinHandle<()>,
    }

    impl Server {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("run")).unwrap();
            let listener = UnixListener::bind(folder.path().join("run/kiln.sock")).unwrap();
            let (pieces, given): (_, Receiver<&'static [u8]>) = channel();
            let thread = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                for piece in given {
                    stream.write_all(piece).unwrap();
                }
            });
            Self {
                client: Client::new(folder.path()),
                folder,
                pieces: Some(pieces),
                thread,
            }
        }

        fn with(pieces: &[&'static [u8]]) -> Self {
            let mut server = Self::start();
            for piece in pieces {
                server.say(piece);
            }
            server.pieces = None;
            server
        }

        fn say(&self, piece: &'static [u8]) {
            self.pieces.as_ref().unwrap().send(piece).unwrap();
        }

        fn end(mut self) {
            self.pieces = None;
            self.thread.join().unwrap();
            drop(self.folder);
        }
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn chunks_are_joined_into_lines() {
        let server = Server::with(&[
            CHUNKED,
            b"2\r\n\"a\r\n2;x=y\r\nb\"\r\n",
            b"5\r\n\n\"c\"\n\r\n0\r\n\r\n",
        ]);
        let mut lines = server.client.get_lines("/v1/logs").unwrap();
        let mut texts = Vec::new();
        while let Next::Line(text) = lines.next::<String>(PATIENCE).unwrap() {
            texts.push(text);
        }
        assert_eq!(texts, ["ab", "c"]);
        server.end();
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        const CUT: [&[u8]; 3] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n",
        ];
        for piece in CUT {
            let server = Server::with(&[piece]);
            let answer = server.client.get::<u64>("/v1/status");
            assert!(matches!(answer, Err(Failure::BrokenOff)), "{answer:?}");
            server.end();
        }
        let server = Server::with(&[CHUNKED, b"3\r\n1\n2\r\n0\r\n\r\n"]);
        let mut lines = server.client.get_lines("/v1/logs").unwrap();
        assert_eq!(lines.next::<u64>(PATIENCE).unwrap(), Next::Line(1));
        assert!(matches!(
            lines.next::<u64>(PATIENCE),
            Err(Failure::BrokenOff)
        ));
        server.end();
    }

    #[test]
    fn an_error_says_what_the_controller_said() {
        let server = Server::with(&[
            b"HTTP/1.1 409 Conflict\r\nContent-Length: 40\r\n\r\n",
            br#"{"code":"busy","message":"one is there"}"#,
        ]);
        match server.client.get_lines("/v1/apply").map(|_| ()) {
            Err(Failure::Api(error)) => {
                assert_eq!(
                    (error.code, error.message.as_str()),
                    (ErrorCode::Busy, "one is there")
                );
            }
            other => panic!("{other:?}"),
        }
        server.end();
    }

    #[test]
    fn silence_is_told_from_the_end() {
        let short = Duration::from_millis(20);
        let server = Server::start();
        server.say(CHUNKED);
        server.say(b"2\r\n1\n\r\n1");
        let mut lines = server.client.get_lines("/v1/logs").unwrap();
        assert_eq!(lines.next::<u8>(PATIENCE).unwrap(), Next::Line(1));
        assert_eq!(lines.next::<u8>(short).unwrap(), Next::Silence);
        // The size line was cut by the silence: `1` `0` is sixteen.
        server.say(b"0\r\n222222222222222\n\r\n0\r\n\r\n");
        assert_eq!(
            lines.next::<u64>(PATIENCE).unwrap(),
            Next::Line(222_222_222_222_222)
        );
        assert_eq!(lines.next::<u8>(PATIENCE).unwrap(), Next::End);
        server.end();
    }

    #[test]
    fn a_controller_that_does_not_answer_is_told_with_its_pid() {
        let server = Server::start();
        let short = Duration::from_millis(50);
        let answer = server
            .client
            .call(Method::GET, "/v1/status", Vec::new(), short)
            .map(|_| ());
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(&answer, Err(Failure::Silent { pid: Some(pid), .. }) if *pid == own),
            "{answer:?}"
        );
        server.end();
        // The head alone is no answer either.
        let server = Server::start();
        server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12");
        let answer = server
            .client
            .call(Method::GET, "/v1/status", Vec::new(), short)
            .and_then(Answer::whole);
        assert!(matches!(&answer, Err(Failure::Silent { .. })), "{answer:?}");
        server.end();
    }
}
