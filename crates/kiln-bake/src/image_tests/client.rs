//! One HTTP request over a connection that is there already: the one into the network of a container.
//!
//! ureq speaks HTTP. What it is given is the connection, a limit for all of the answer, and no right to go anywhere else: it follows no
//! redirect and asks no proxy.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::http::header::{CONNECTION, HOST};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error};

use super::subject::SAID_MAX;

const BODY_MAX: u64 = 2 * SAID_MAX as u64;
const HEADER_MAX: usize = 256 << 10;
const BUFFER: usize = 64 << 10;

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// Asks for `path`. All of it, the body too, is there after `left`, or it is an error.
pub(super) fn get(
    stream: TcpStream,
    path: &str,
    port: u16,
    left: Duration,
) -> Result<Answer, String> {
    let config = Agent::config_builder()
        .timeout_global(Some(left))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_response_header_size(HEADER_MAX)
        .proxy(None)
        .user_agent("kiln-test")
        .build();
    let connection = Connection(Mutex::new(Some(stream)));
    let agent = Agent::with_parts(config, connection, DefaultResolver::default());
    // The address is not looked up, and not dialled: the connection is there.
    let mut response = agent
        .get(format!("http://{}:{port}{path}", Ipv4Addr::LOCALHOST))
        .header(HOST, format!("localhost:{port}"))
        .header(CONNECTION, "close")
        .call()
        .map_err(told)?;
    let headers = response.headers().iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    Ok(Answer {
        status: response.status().as_u16(),
        headers: headers.collect(),
        body: response
            .body_mut()
            .with_config()
            .limit(BODY_MAX)
            .read_to_vec()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(told)?,
    })
}

/// What is wrong with the answer, for people: the error itself is of who asked.
fn told(error: Error) -> String {
    match error {
        Error::Timeout(_) => "no answer in time".to_owned(),
        Error::BodyExceedsLimit(_) => "the answer is larger than 2 MiB".to_owned(),
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            "no answer in time".to_owned()
        }
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection ended within the answer".to_owned()
        }
        Error::Protocol(problem) => format!("the answer is no HTTP: {problem}"),
        error => error.to_string(),
    }
}

/// Gives the connection to the first request, which is the only one.
#[derive(Debug)]
struct Connection(Mutex<Option<TcpStream>>);

impl Connector for Connection {
    type Out = Stream;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(stream.take().map(|stream| Stream {
            stream,
            buffers: LazyBuffers::new(BUFFER, BUFFER),
        }))
    }
}

struct Stream {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stream.fmt(f)
    }
}

/// A socket tells the end of its time as one that would block.
fn timed(timeout: NextTimeout) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let limit = timeout.not_zero().map(|limit| *limit);
        self.stream.set_write_timeout(limit)?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(timed(timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let limit = timeout.not_zero().map(|limit| *limit);
        self.stream.set_read_timeout(limit)?;
        let input = self.buffers.input_append_buf();
        let amount = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(timed(timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Of no use for a second request.
    fn is_open(&mut self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What is made of an answer of these bytes, with what was asked. After them the connection ends, where it does not go on.
    fn answered(bytes: &[u8], goes_on: bool) -> (Result<Answer, String>, String) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || {
                let (mut asked, mut byte) = (Vec::new(), [0]);
                while !asked.ends_with(b"\r\n\r\n") {
                    server.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                // Who has enough of a large one closes the connection.
                if server.write_all(bytes).is_ok() && goes_on {
                    // Until the other end is gone.
                    assert!(!matches!(server.read(&mut byte), Ok(count) if count > 0));
                }
                String::from_utf8(asked).unwrap()
            });
            let left = Duration::from_millis(if goes_on { 300 } else { 30_000 });
            let answer = get(client, "/a?b=c", address.port(), left);
            (answer, answering.join().unwrap())
        })
    }

    fn body(bytes: &str, goes_on: bool) -> Result<String, String> {
        answered(bytes.as_bytes(), goes_on)
            .0
            .map(|answer| answer.body)
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\nA: b\r\n";

    #[test]
    fn an_answer_ends_with_its_length_its_last_chunk_or_its_connection() {
        let (answer, asked) = answered(
            format!("{HEAD}Content-Length: 3\r\n\r\nabc").as_bytes(),
            true,
        );
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "abc"));
        assert!(answer.headers.contains(&("a".to_owned(), "b".to_owned())));
        assert!(asked.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{asked}");
        let asked = asked.to_ascii_lowercase();
        for line in [
            "host: localhost:",
            "user-agent: kiln-test\r\n",
            "accept: */*\r\n",
            "connection: close\r\n",
        ] {
            assert!(asked.contains(&format!("\r\n{line}")), "{asked}");
        }
        let chunked =
            format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n");
        assert_eq!(body(&chunked, true).unwrap(), "abc");
        assert_eq!(body(&format!("{HEAD}\r\nabc"), false).unwrap(), "abc");
        assert_eq!(body("HTTP/1.1 204 No\r\n\r\n", true).unwrap(), "");
    }

    #[test]
    fn what_is_no_whole_answer_is_told() {
        let part = format!("{HEAD}Content-Length: 3\r\n\r\nab");
        let ended = "the connection ended within the answer";
        assert_eq!(body(&part, false).unwrap_err(), ended);
        assert_eq!(body(HEAD, false).unwrap_err(), ended);
        assert_eq!(body(&part, true).unwrap_err(), "no answer in time");
        assert_eq!(body("", true).unwrap_err(), "no answer in time");
        let other = body("SSH-2.0-x\r\n\r\n", false).unwrap_err();
        assert!(other.contains("is no HTTP"), "{other}");
        let large = format!("{HEAD}\r\n{}", "x".repeat(3 * SAID_MAX));
        assert_eq!(
            body(&large, false).unwrap_err(),
            "the answer is larger than 2 MiB"
        );
    }

    #[test]
    fn a_redirect_is_an_answer() {
        let moved =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answered(moved.as_bytes(), true).0.unwrap().status, 302);
    }
}
