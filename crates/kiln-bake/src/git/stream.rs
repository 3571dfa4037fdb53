//! Git's protocol over a stream of bytes: plain TCP (gitprotocol-pack(5), "Git Transport"), and what a client of ssh gives.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::GitSource;
use super::packets::{self, Lines};
use super::transport::{NO_VERSION, speaks_version_2, too_large};
use crate::error::BakeError;

/// The references of a large repository have some megabytes.
pub(super) const REFS_MAX: u64 = 64 << 20;
/// Of git:// (gitprotocol-pack(5)).
const PORT: u16 = 9418;
pub(super) const CONNECT: Duration = Duration::from_secs(10);
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// A connection for each command: the server ends it when nothing more is asked.
pub(super) fn by_tcp(
    source: &GitSource,
    host: &str,
    path: &str,
    request: &[u8],
    limit: u64,
) -> Result<Vec<u8>, BakeError> {
    let failed = |error: std::io::Error| source.error(error);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (name, port),
            Err(_) => return Err(source.error(format!("`{port}` is no port"))),
        },
        _ => (host, PORT),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let mut last = None;
    let addresses = (name, port).to_socket_addrs().map_err(failed)?;
    let stream = addresses.into_iter().find_map(|address| {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => Some(stream),
            Err(error) => {
                last = Some(error);
                None
            }
        }
    });
    let mut stream = match (stream, last) {
        (Some(stream), _) => stream,
        (None, Some(error)) => return Err(failed(error)),
        (None, None) => return Err(source.error(format!("`{name}` has no address"))),
    };
    stream.set_read_timeout(Some(SILENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(SILENCE)).map_err(failed)?;
    let mut hello = Vec::new();
    let asked = format!("git-upload-pack {path}\0host={host}\0\0version=2\0");
    packets::line(&mut hello, &asked);
    stream.write_all(&hello).map_err(failed)?;
    let problem = |problem| source.error(problem);
    let greeting = until_flush(&mut stream, REFS_MAX).map_err(problem)?;
    if let Some(Err(problem)) = Lines(&greeting).find(Result::is_err) {
        return Err(source.error(problem));
    }
    if !speaks_version_2(&greeting) {
        return Err(source.error(NO_VERSION));
    }
    stream.write_all(request).map_err(failed)?;
    until_flush(&mut stream, limit).map_err(problem)
}

/// All packets up to the one that ends an answer, or up to an error.
pub(super) fn until_flush(stream: &mut impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("its server says nothing for {} s", SILENCE.as_secs())
        }
        ErrorKind::UnexpectedEof => "its server's answer breaks off".to_owned(),
        _ => error.to_string(),
    };
    let mut bytes = Vec::new();
    let mut stream = std::io::BufReader::with_capacity(64 << 10, stream);
    loop {
        let mut head = [0; 4];
        let read = stream.read(&mut head[..1]).map_err(failed)?;
        // Servers that refuse say why, and end the connection.
        if read == 0 && !bytes.is_empty() {
            return Ok(bytes);
        }
        stream.read_exact(&mut head[read..]).map_err(failed)?;
        let length = packets::length(&head)
            .ok_or_else(|| "its server does not speak Git's protocol".to_owned())?;
        bytes.extend(head);
        if length == 0 {
            return Ok(bytes);
        }
        let rest = length.saturating_sub(4) as u64;
        if bytes.len() as u64 + rest > limit {
            return Err(too_large(limit));
        }
        let read = (&mut stream).take(rest).read_to_end(&mut bytes);
        if read.map_err(failed)? as u64 != rest {
            return Err(failed(ErrorKind::UnexpectedEof.into()));
        }
    }
}
