//! The threads that serve, as the control thread sees them.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::names::NamedSockets;
use super::worker::ToWorker;

/// The threads, and how to reach them.
#[derive(Default)]
pub(super) struct Workers {
    pub(super) inboxes: Vec<mpsc::UnboundedSender<ToWorker>>,
    pub(super) threads: Vec<JoinHandle<io::Result<()>>>,
    names: Option<mpsc::UnboundedSender<NamedSockets>>,
}

impl Workers {
    /// The name server ends with the process: nobody waits for it.
    pub(super) fn set_names(&mut self, names: mpsc::UnboundedSender<NamedSockets>) {
        self.names = Some(names);
    }

    pub(super) fn tell_names(&self, sockets: NamedSockets) {
        if let Some(names) = &self.names {
            drop(names.send(sockets));
        }
    }

    pub(super) fn add(
        &mut self,
        inbox: mpsc::UnboundedSender<ToWorker>,
        thread: JoinHandle<io::Result<()>>,
    ) {
        self.inboxes.push(inbox);
        self.threads.push(thread);
    }

    pub(super) fn tell(&self, message: impl Fn() -> ToWorker) {
        for inbox in &self.inboxes {
            // One that has ended is noticed by its thread.
            drop(inbox.send(message()));
        }
    }
}
