//! What every transport has of the protocol: its bounds, its version, and where an answer ends.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use crate::pkt_line::{self, Line, Lines};

/// Held in memory while its files are written.
pub(crate) const PACK_MAX: u64 = 2 << 30;
/// The references of a large repository have some megabytes.
pub(crate) const REFS_MAX: u64 = 64 << 20;
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
pub(crate) const NO_VERSION: &str =
    "its server does not speak version 2 of Git's protocol, which all of 2018 and later do";

pub(crate) fn speaks_version_2(bytes: &[u8]) -> bool {
    let mut lines = Lines(bytes);
    lines.any(|line| matches!(line, Ok(Line::Text(b"version 2\n"))))
}

/// All packets up to the one that ends an answer, or up to an error.
pub(crate) fn until_flush(stream: &mut impl Read, limit: u64) -> Result<Vec<u8>, String> {
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
        let length = pkt_line::length(&head)
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

pub(crate) fn too_large(limit: u64) -> String {
    let of_all = if limit < PACK_MAX && limit != REFS_MAX {
        ", with what came before it"
    } else {
        ""
    };
    let most = if of_all.is_empty() { limit } else { PACK_MAX };
    format!("it sends more than {} MiB{of_all}", most >> 20)
}
