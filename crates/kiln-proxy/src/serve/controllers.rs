//! The connections of controllers: lines in, lines out.

use kiln_model::{FromProxy, ToProxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::worker::say;

/// A table of thousands of instances.
const LINE_LIMIT: u64 = 64 * 1024 * 1024;

pub(super) type ConnectionId = u64;

pub(super) enum Event {
    Said(ConnectionId, ToProxy),
    Gone(ConnectionId),
}

pub(super) async fn talk(
    id: ConnectionId,
    stream: UnixStream,
    mut outgoing: mpsc::UnboundedReceiver<FromProxy>,
    events: mpsc::UnboundedSender<Event>,
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
            match serde_json::from_slice(&line) {
                Ok(said) => {
                    if events.send(Event::Said(id, said)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // A table that is not understood must not be taken for one that is served.
                    say(&format!(
                        "a controller said what this version doesn't understand: {error}"
                    ));
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    // Nobody listens any more when the process ends.
    let _ = events.send(Event::Gone(id));
}
