//! One request and its answer on one connection.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::request::Request;
use super::tally::Loss;

const HEAD_LIMIT: u64 = 64 * 1024;
const BODY_LIMIT: u64 = 64 * 1024 * 1024;

/// A connection that may carry further requests.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    /// The server has said that it closes after the present answer.
    closing: bool,
}

/// An answer that is whole and right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// As in `bench@7`; empty: the header was not there.
    pub(super) release: String,
}

impl Connection {
    pub(super) fn open(address: SocketAddr, timeout: Duration) -> Result<Self, Loss> {
        let opened = TcpStream::connect_timeout(&address, timeout).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => Ok(Self {
                stream: BufReader::with_capacity(32 * 1024, stream),
                closing: false,
            }),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(Loss::Refused),
            Err(error) => Err(lost(&error, Loss::Reset)),
        }
    }

    pub(super) fn reusable(&self) -> bool {
        !self.closing
    }

    pub(super) fn exchange(&mut self, request: &Request, host: &str) -> Result<Answer, Loss> {
        self.stream
            .get_mut()
            .write_all(&request.wire(host))
            .map_err(|error| lost(&error, Loss::Reset))?;
        let head = self.head()?;
        if let Some(close) = head.connection {
            self.closing = close;
        }
        let body = match head.length {
            Length::Chunked => self.chunked()?,
            Length::Bytes(length) => self.exactly(length)?,
            Length::UntilClose => {
                // Whole or cut can't be told apart, so that the service under test never answers like this.
                return Err(Loss::Malformed);
            }
        };
        if !(200..300).contains(&head.status) {
            return Err(Loss::Status(head.status));
        }
        if !request.accepts(&body, &head.release) {
            return Err(Loss::WrongBody);
        }
        Ok(Answer {
            release: head.release,
        })
    }

    fn head(&mut self) -> Result<Head, Loss> {
        let first = self.line(Loss::NoAnswer)?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or(Loss::Malformed)?;
        let mut head = Head {
            status,
            release: String::new(),
            length: Length::UntilClose,
            connection: None,
        };
        loop {
            let line = self.line(Loss::CutBody)?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line.split_once(':').ok_or(Loss::Malformed)?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.length = Length::Bytes(value.parse().map_err(|_| Loss::Malformed)?);
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => {
                    head.length = Length::Chunked;
                }
                "connection" => head.connection = Some(value.eq_ignore_ascii_case("close")),
                "x-release" => head.release = value.to_owned(),
                _ => {}
            }
        }
    }

    /// A line without its end; `ended` is what it means that the connection ends here.
    fn line(&mut self, ended: Loss) -> Result<String, Loss> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(HEAD_LIMIT)
            .read_until(b'\n', &mut line)
            .map_err(|error| lost(&error, ended.on_reset()))?;
        if read == 0 || line.pop() != Some(b'\n') {
            return Err(ended);
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| Loss::Malformed)
    }

    fn exactly(&mut self, length: u64) -> Result<Vec<u8>, Loss> {
        if length > BODY_LIMIT {
            return Err(Loss::Malformed);
        }
        let mut body = vec![0; usize::try_from(length).map_err(|_| Loss::Malformed)?];
        self.stream
            .read_exact(&mut body)
            .map_err(|error| lost(&error, Loss::CutBody))?;
        Ok(body)
    }

    fn chunked(&mut self) -> Result<Vec<u8>, Loss> {
        let mut body = Vec::new();
        loop {
            let line = self.line(Loss::CutBody)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| Loss::Malformed)?;
            if size == 0 {
                while !self.line(Loss::CutBody)?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size)?);
            if body.len() as u64 > BODY_LIMIT || !self.line(Loss::CutBody)?.is_empty() {
                return Err(Loss::Malformed);
            }
        }
    }
}

struct Head {
    status: u16,
    release: String,
    length: Length,
    /// What the `Connection` header says of closing, where there is one.
    connection: Option<bool>,
}

enum Length {
    Bytes(u64),
    Chunked,
    UntilClose,
}

/// What an error of the socket means; `otherwise` where it is neither a timeout.
fn lost(error: &io::Error, otherwise: Loss) -> Loss {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Loss::Timeout,
        _ => otherwise,
    }
}
