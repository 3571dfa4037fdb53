//! The protocol over plain TCP (gitprotocol-pack(5), "Git Transport").

use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};

use crate::error::GitError;
use crate::pkt_line::{self, Lines};
use crate::protocol::{CONNECT, NO_VERSION, REFS_MAX, SILENCE, speaks_version_2, until_flush};
use crate::source::GitSource;

/// Of git:// (gitprotocol-pack(5)).
const PORT: u16 = 9418;

/// A connection for each command: the server ends it when nothing more is asked.
pub(crate) fn ask(
    source: &GitSource,
    host: &str,
    path: &str,
    request: &[u8],
    limit: u64,
) -> Result<Vec<u8>, GitError> {
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
    pkt_line::line(&mut hello, &asked);
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
