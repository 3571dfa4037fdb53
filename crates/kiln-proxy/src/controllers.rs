//! The connections of controllers: lines in, lines out.
//!
//! A controller may be of another version. What this version does not understand is answered where an answer is waited
//! for, skipped otherwise, and never ends the connection: that would take switches away that both understand.

use kiln_model::{FromProxy, Generation, ToProxy};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::log::say;

/// A table of thousands of instances.
const LINE_LIMIT: u64 = 64 * 1024 * 1024;

/// Messages of controllers that wait to be handled; then they wait in their sockets.
pub(super) const EVENTS: usize = 64;
/// Messages that one controller has not read yet.
pub(super) const UNREAD: usize = 1024;

pub(super) type ConnectionId = u64;

pub(super) enum Event {
    Said(ConnectionId, ToProxy),
    /// A table that must not be served, because this version does not understand it.
    Unreadable(ConnectionId, Generation, serde_json::Error),
    Gone(ConnectionId),
}

/// What every version says of a message.
#[derive(Deserialize)]
struct Envelope {
    kind: String,
    table: Option<Numbered>,
}

#[derive(Deserialize)]
struct Numbered {
    generation: Generation,
}

fn event_of(id: ConnectionId, line: &[u8]) -> Option<Event> {
    let error = match serde_json::from_slice(line) {
        Ok(said) => return Some(Event::Said(id, said)),
        Err(error) => error,
    };
    match serde_json::from_slice(line) {
        Ok(Envelope {
            kind,
            table: Some(Numbered { generation }),
        }) if kind == "table" => Some(Event::Unreadable(id, generation, error)),
        Ok(Envelope { kind, .. }) => {
            say(&format!(
                "a controller sent a message of kind `{kind}`, which this version does not understand: {error}"
            ));
            None
        }
        Err(_) => {
            say(&format!("a controller sent what is no message: {error}"));
            None
        }
    }
}

pub(super) async fn talk(
    id: ConnectionId,
    stream: UnixStream,
    mut outgoing: mpsc::Receiver<FromProxy>,
    events: mpsc::Sender<Event>,
) {
    let (reader, mut writer) = stream.into_split();
    let write = async {
        while let Some(message) = outgoing.recv().await {
            let Ok(mut line) = serde_json::to_vec(&message) else {
                return;
            };
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader)
                .take(LINE_LIMIT)
                .read_until(b'\n', &mut line)
                .await
            {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Some(event) = event_of(id, &line)
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    // Nobody listens any more when the process ends.
    drop(events.send(Event::Gone(id)).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_says_is_answered_or_skipped() {
        let count = event_of(1, br#"{"kind":"count","since":4}"#);
        assert!(matches!(count, Some(Event::Said(1, ToProxy::Count))));
        assert!(event_of(1, br#"{"kind":"pause","service":"dev/api"}"#).is_none());
        assert!(event_of(1, b"{").is_none());
        let table = br#"{"kind":"table","table":{"format":99,"generation":8,"routes":[]}}"#;
        assert!(matches!(
            event_of(1, table),
            Some(Event::Unreadable(1, Generation(8), _))
        ));
    }
}
