//! The daemon's HTTP API, over its unix socket.
//!
//! A client of its own rather than an asynchronous one: a command asks one thing at a time, and the whole of
//! HTTP/1.1 that the daemon's answers use is a status line, headers and a body that is whole or chunked.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_model::api::{ApiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// A head longer than this is nothing that the daemon sends.
const HEAD_LIMIT: u64 = 64 * 1024;
/// A whole answer: the history of many services stays well below.
const BODY_LIMIT: u64 = 64 * 1024 * 1024;

/// How long a call that is answered at once may take.
const PATIENCE: Duration = Duration::from_secs(60);

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

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.whole("GET", path, b"")
    }

    pub(crate) fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        self.whole("POST", path, &encode(body)?)
    }

    /// A call that has nothing to say.
    pub(crate) fn order(&self, path: &str) -> Result<(), Failure> {
        self.send("POST", path, b"")?.finish().map(|_| ())
    }

    pub(crate) fn post_lines<B: Serialize>(&self, path: &str, body: &B) -> Result<Lines, Failure> {
        self.send("POST", path, &encode(body)?)?.lines()
    }

    pub(crate) fn get_lines(&self, path: &str) -> Result<Lines, Failure> {
        self.send("GET", path, b"")?.lines()
    }

    fn whole<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<T, Failure> {
        let bytes = self.send(method, path, body)?.finish()?;
        serde_json::from_slice(&bytes).map_err(|error| Failure::Answer {
            what: error.to_string(),
        })
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, Failure> {
        let failed = |source: std::io::Error| match source.kind() {
            // The socket of a controller that was killed is still there, and nobody listens on it.
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::NotRunning {
                root: self.root.clone(),
            },
            _ => Failure::Socket {
                root: self.root.clone(),
                source,
            },
        };
        let mut stream = UnixStream::connect(self.root.join("run/kiln.sock")).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request).map_err(failed)?;
        Answer::read(stream)
    }
}

fn encode<B: Serialize>(body: &B) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|error| Failure::Answer {
        what: error.to_string(),
    })
}

fn broken(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::Answer {
            what: format!("nothing came for {} s", PATIENCE.as_secs()),
        },
        _ => Failure::BrokenOff,
    }
}

enum Length {
    Chunked,
    Known(u64),
    UntilEnd,
}

struct Answer {
    reader: BufReader<UnixStream>,
    status: u16,
    length: Length,
}

impl Answer {
    fn read(stream: UnixStream) -> Result<Self, Failure> {
        let mut reader = BufReader::new(stream);
        let mut left = HEAD_LIMIT;
        let mut line = |reader: &mut BufReader<UnixStream>| -> Result<String, Failure> {
            let mut bytes = Vec::new();
            let read = reader
                .by_ref()
                .take(left)
                .read_until(b'\n', &mut bytes)
                .map_err(|e| broken(&e))?;
            left -= read as u64;
            if read == 0 {
                return Err(Failure::BrokenOff);
            }
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        let first = line(&mut reader)?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| Failure::Answer {
                what: format!("it begins with `{first}`"),
            })?;
        let mut length = Length::UntilEnd;
        loop {
            let header = line(&mut reader)?;
            if header.is_empty() {
                break;
            }
            let Some((name, value)) = header.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("transfer-encoding")
                && value.eq_ignore_ascii_case("chunked")
            {
                length = Length::Chunked;
            } else if name.eq_ignore_ascii_case("content-length") {
                let bytes = value.parse().map_err(|_| Failure::Answer {
                    what: header.clone(),
                })?;
                length = Length::Known(bytes);
            }
        }
        if status == 204 {
            length = Length::Known(0);
        }
        Ok(Self {
            reader,
            status,
            length,
        })
    }

    /// The whole body of a good answer; any other is an error.
    fn finish(self) -> Result<Vec<u8>, Failure> {
        let status = self.status;
        let mut body = Vec::new();
        Body::new(self)
            .take(BODY_LIMIT)
            .read_to_end(&mut body)
            .map_err(|e| broken(&e))?;
        if (200..300).contains(&status) {
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

    fn lines(self) -> Result<Lines, Failure> {
        if !(200..300).contains(&self.status) {
            return match self.finish() {
                Err(failure) => Err(failure),
                Ok(_) => Err(Failure::BrokenOff),
            };
        }
        Ok(Lines {
            body: Body::new(self),
            pending: Vec::new(),
        })
    }
}

/// The bytes of a body, whatever way its end is marked.
struct Body {
    answer: Answer,
    /// Of the present chunk, or of the whole.
    left: u64,
    ended: bool,
    first: bool,
    /// A size line of which only a part has come when the read timed out.
    size: Vec<u8>,
}

impl Body {
    fn new(answer: Answer) -> Self {
        let left = match answer.length {
            Length::Known(bytes) => bytes,
            Length::Chunked => 0,
            Length::UntilEnd => u64::MAX,
        };
        Self {
            answer,
            left,
            ended: false,
            first: true,
            size: Vec::new(),
        }
    }

    /// Reads on to the next chunk's size. May be called again after a timeout.
    fn next_chunk(&mut self) -> std::io::Result<()> {
        loop {
            let limit = 32 - self.size.len().min(32);
            let read = self
                .answer
                .reader
                .by_ref()
                .take(limit as u64)
                .read_until(b'\n', &mut self.size)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if !self.size.ends_with(b"\n") {
                continue;
            }
            let text = String::from_utf8_lossy(&self.size).trim().to_owned();
            self.size.clear();
            // The line that ends the chunk before.
            if text.is_empty() && !self.first {
                continue;
            }
            self.first = false;
            let digits = text.split(';').next().unwrap_or_default().trim();
            self.left = u64::from_str_radix(digits, 16)
                .map_err(|_| std::io::Error::from(ErrorKind::InvalidData))?;
            self.ended = self.left == 0;
            return Ok(());
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.ended {
            match self.answer.length {
                Length::Chunked => self.next_chunk()?,
                Length::Known(_) | Length::UntilEnd => self.ended = true,
            }
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.answer.reader.read(&mut buffer[..most])?;
        match (read, &self.answer.length) {
            (0, Length::UntilEnd) => self.ended = true,
            (0, Length::Chunked | Length::Known(_)) => return Err(ErrorKind::UnexpectedEof.into()),
            (_, Length::UntilEnd) => {}
            (_, Length::Chunked | Length::Known(_)) => self.left -= read as u64,
        }
        Ok(read)
    }
}

/// What comes next in an answer of lines.
pub(crate) enum Next<T> {
    Line(T),
    /// Nothing yet.
    Silence,
    End,
}

/// An answer that comes line by line, one JSON value each.
pub(crate) struct Lines {
    body: Body,
    pending: Vec<u8>,
}

impl Lines {
    /// Waits for the next line for at most `patience`.
    pub(crate) fn next<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> Result<Next<T>, Failure> {
        let stream = self.body.answer.reader.get_ref();
        stream
            .set_read_timeout(Some(patience))
            .map_err(|_| Failure::BrokenOff)?;
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Next::Line)
                    .map_err(|error| Failure::Answer {
                        what: error.to_string(),
                    });
            }
            let mut buffer = [0; 8192];
            match self.body.read(&mut buffer) {
                Ok(0) => return Ok(Next::End),
                Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(Next::Silence),
                    ErrorKind::Interrupted => {}
                    _ => return Err(Failure::BrokenOff),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of the bytes that a server writes, in pieces.
    fn answer(pieces: &'static [&'static [u8]]) -> (Answer, std::thread::JoinHandle<()>) {
        let (mut server, client) = UnixStream::pair().unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let writer = std::thread::spawn(move || {
            for piece in pieces {
                server.write_all(piece).unwrap();
            }
        });
        (Answer::read(client).unwrap(), writer)
    }

    #[test]
    fn chunks_are_joined_into_lines() {
        let (answer, writer) = answer(&[
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"2\r\n\"a\r\n2;x=y\r\nb\"\r\n",
            b"5\r\n\n\"c\"\n\r\n0\r\n\r\n",
        ]);
        let mut lines = answer.lines().unwrap();
        let mut texts = Vec::new();
        while let Next::Line(text) = lines.next::<String>(Duration::from_secs(5)).unwrap() {
            texts.push(text);
        }
        assert_eq!(texts, ["ab", "c"]);
        writer.join().unwrap();
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        const CUT: [&[&[u8]]; 3] = [
            &[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"],
            &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"],
            &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"],
        ];
        for pieces in CUT {
            let (answer, writer) = answer(pieces);
            assert!(matches!(answer.finish(), Err(Failure::BrokenOff)));
            writer.join().unwrap();
        }
    }

    #[test]
    fn an_error_says_what_the_controller_said() {
        let (answer, writer) = answer(&[
            b"HTTP/1.1 409 Conflict\r\nContent-Length: 40\r\n\r\n",
            br#"{"code":"busy","message":"one is there"}"#,
        ]);
        match answer.finish() {
            Err(Failure::Api(error)) => {
                assert_eq!(
                    (error.code, error.message.as_str()),
                    (ErrorCode::Busy, "one is there")
                );
            }
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
    }

    #[test]
    fn silence_is_told_from_the_end() {
        let (mut server, client) = UnixStream::pair().unwrap();
        server
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n1")
            .unwrap();
        let mut lines = Answer::read(client).unwrap().lines().unwrap();
        let patience = Duration::from_millis(20);
        assert!(matches!(lines.next::<u8>(patience), Ok(Next::Line(1))));
        assert!(matches!(lines.next::<u8>(patience), Ok(Next::Silence)));
        // The size line was cut by the silence: `1` `0` is sixteen.
        server
            .write_all(b"0\r\n222222222222222\n\r\n0\r\n\r\n")
            .unwrap();
        assert!(matches!(
            lines.next::<u64>(patience),
            Ok(Next::Line(222_222_222_222_222))
        ));
        assert!(matches!(lines.next::<u8>(patience), Ok(Next::End)));
    }
}
