//! Upgraded connections (WebSocket): bytes both ways until one side ends.
//!
//! They don't hold a drain of requests. From half of its instance's drain on they are closed, spread over the other
//! half, so that the clients don't all connect again in one instant.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::task::Poll;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use super::slots::Slots;

/// Those of one worker.
pub(super) type Tunnels = Rc<RefCell<Slots<Rc<Tunnel>>>>;

pub(super) struct Tunnel {
    epoch: u64,
    ends_at: Cell<Option<u64>>,
    over: Notify,
}

impl Tunnel {
    pub(super) fn is_at(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    /// Ends it at the time, or at an earlier one that was given before.
    pub(super) fn end_at(&self, at: u64) {
        self.ends_at
            .set(Some(self.ends_at.get().map_or(at, |before| before.min(at))));
    }

    pub(super) fn keep(&self) {
        self.ends_at.set(None);
    }

    pub(super) fn sweep(&self, now: u64) {
        if self.ends_at.get().is_some_and(|at| at <= now) {
            self.over.notify_one();
        }
    }
}

/// Runs it as a task of the worker, which ends with the connections.
pub(super) fn open(tunnels: &Tunnels, epoch: u64, client: OnUpgrade, instance: OnUpgrade) {
    let tunnel = Rc::new(Tunnel {
        epoch,
        ends_at: Cell::new(None),
        over: Notify::new(),
    });
    let slot = tunnels.borrow_mut().insert(Rc::clone(&tunnel));
    let tunnels = Rc::clone(tunnels);
    tokio::task::spawn_local(async move {
        let copy = async {
            let (Ok(client), Ok(instance)) = (client.await, instance.await) else {
                return;
            };
            let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
            // A side that fails ends both; there is nobody to tell but the two, who see it.
            drop(tokio::io::copy_bidirectional(&mut client, &mut instance).await);
        };
        let mut copy = std::pin::pin!(copy);
        let mut over = std::pin::pin!(tunnel.over.notified());
        std::future::poll_fn(|context| {
            if over.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            copy.as_mut().poll(context)
        })
        .await;
        tunnels.borrow_mut().remove(slot);
    });
}
