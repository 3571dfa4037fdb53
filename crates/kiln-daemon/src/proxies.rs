//! The connections to the proxies: finds their control sockets, sends tables, hands on what they say.
//!
//! There is one proxy most of the time, two while one replaces the other, and none while the supervisor
//! starts the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_control::ProxyId;
use kiln_model::{FromProxy, ToProxy};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::owner::Input;

/// How often the folder of control sockets is looked at: what a restarted proxy waits at most for its controller,
/// while it serves its saved table.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A line of a proxy is a few bytes for each release it counts.
const LINE_LIMIT: u64 = 16 * 1024 * 1024;

pub(crate) enum ProxyInput {
    Connected {
        sender: mpsc::UnboundedSender<ToProxy>,
    },
    Said(FromProxy),
    Gone,
}

/// Every connected proxy.
#[derive(Default)]
pub(crate) struct Links {
    links: BTreeMap<ProxyId, mpsc::UnboundedSender<ToProxy>>,
}

impl Links {
    pub(crate) fn connected(&mut self, id: ProxyId, sender: mpsc::UnboundedSender<ToProxy>) {
        self.links.insert(id, sender);
    }

    pub(crate) fn gone(&mut self, id: ProxyId) {
        self.links.remove(&id);
    }

    pub(crate) fn send_to(&self, id: ProxyId, message: ToProxy) {
        if let Some(sender) = self.links.get(&id) {
            // A closed channel is a proxy that is gone: its `Gone` is under way.
            drop(sender.send(message));
        }
    }
}

/// Looks for proxies for as long as the owner listens.
pub(crate) async fn find(folder: PathBuf, inputs: mpsc::UnboundedSender<Input>) {
    let mut known: BTreeMap<ProxyId, tokio::task::JoinHandle<()>> = BTreeMap::new();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !inputs.is_closed() {
        tick.tick().await;
        known.retain(|_, task| !task.is_finished());
        for (id, path) in sockets(&folder) {
            if known.contains_key(&id) {
                continue;
            }
            // Refused: the file of a proxy that is gone. The next proxy removes it.
            let Ok(stream) = UnixStream::connect(&path).await else {
                continue;
            };
            known.insert(id, tokio::spawn(talk(id, stream, inputs.clone())));
        }
    }
}

fn sockets(folder: &Path) -> Vec<(ProxyId, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".sock")?;
            Some((name.parse().ok()?, path))
        })
        .collect();
    found.sort();
    found
}

async fn talk(id: ProxyId, stream: UnixStream, inputs: mpsc::UnboundedSender<Input>) {
    let (reader, mut writer) = stream.into_split();
    let (sender, mut outgoing) = mpsc::unbounded_channel::<ToProxy>();
    if inputs
        .send(Input::Proxy(id, ProxyInput::Connected { sender }))
        .is_err()
    {
        return;
    }
    let write = async {
        while let Some(message) = outgoing.recv().await {
            let Ok(mut line) = serde_json::to_vec(&message) else {
                continue;
            };
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                break;
            }
        }
    };
    let read = async {
        let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(reader, u64::MAX));
        let mut line = Vec::new();
        loop {
            line.clear();
            match tokio::io::AsyncReadExt::take(&mut lines, LINE_LIMIT)
                .read_until(b'\n', &mut line)
                .await
            {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            // A line that we can't read is from a proxy of another age: what it says is not for us.
            let Ok(said) = serde_json::from_slice::<FromProxy>(&line) else {
                continue;
            };
            if inputs
                .send(Input::Proxy(id, ProxyInput::Said(said)))
                .is_err()
            {
                break;
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    let _ = inputs.send(Input::Proxy(id, ProxyInput::Gone));
}
