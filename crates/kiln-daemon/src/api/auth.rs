use std::io;

use kiln_model::Actor;
use tokio::net::UnixStream;

/// Who is at the other end of the connection, as the kernel says it (SO_PEERCRED).
pub(super) fn actor(stream: &UnixStream) -> io::Result<Actor> {
    stream.peer_cred().map(|peer| Actor::Uid(peer.uid()))
}
