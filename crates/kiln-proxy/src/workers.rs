//! The threads that serve, as the control thread sees them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use kiln_pool::Moment;
use kiln_supervise::handoff::SocketName;
use tokio::sync::{mpsc, oneshot};

use super::names::NamedSockets;

/// What the control thread says to a worker.
pub(super) enum ToWorker {
    /// Accept on these and on no others. Answered when it is so.
    Listen {
        listeners: Vec<(SocketName, Arc<OwnedFd>)>,
        done: oneshot::Sender<Result<(), io::Error>>,
    },
    /// These instances get no more requests: their idle connections go.
    Forget {
        epochs: Vec<u64>,
    },
    /// The drain of an instance begins.
    EndTunnels {
        epoch: u64,
        until: Moment,
    },
    /// A draining instance serves again.
    KeepTunnels {
        epoch: u64,
    },
    /// The drain of an instance had its time.
    Cut {
        epoch: u64,
    },
    Retire {
        quickly: bool,
    },
}

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
