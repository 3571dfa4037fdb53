//! Idle connections to instances, of one worker: the last one used is the first one taken, so that as few as
//! possible stay warm and the others grow old and go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hyper::client::conn::http1::SendRequest;

use super::request_body::RequestBody;
use super::table::{Instance, Shared};

/// Shorter than the idle limit of common servers (5 s): the instance should not be the one who closes.
const IDLE_MS: u64 = 4_000;
/// For a request that can't be sent twice, only a connection that was used just now.
const IDLE_MS_ONCE: u64 = 1_000;

struct Idle {
    sender: SendRequest<RequestBody>,
    since: u64,
}

#[derive(Default)]
pub(super) struct Pool {
    by_epoch: RefCell<HashMap<u64, Vec<Idle>>>,
}

impl Pool {
    /// `once`: the request must not be sent twice.
    pub(super) fn take(
        &self,
        instance: &Instance,
        now: u64,
        once: bool,
    ) -> Option<SendRequest<RequestBody>> {
        let mut by_epoch = self.by_epoch.borrow_mut();
        let idle = by_epoch.get_mut(&instance.epoch)?;
        let limit = if once { IDLE_MS_ONCE } else { IDLE_MS };
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            if idle[index].sender.is_closed() {
                idle.remove(index);
            } else if idle[index].sender.is_ready()
                && now.saturating_sub(idle[index].since) <= limit
            {
                return Some(idle.remove(index).sender);
            }
            // Not ready: its task has yet to run. It will be for the next.
        }
        None
    }

    fn put(&self, instance: &Instance, sender: SendRequest<RequestBody>, now: u64) {
        if !sender.is_closed() && !instance.draining.load(SeqCst) {
            self.by_epoch
                .borrow_mut()
                .entry(instance.epoch)
                .or_default()
                .push(Idle { sender, since: now });
        }
    }

    pub(super) fn forget(&self, epochs: &[u64]) {
        let mut by_epoch = self.by_epoch.borrow_mut();
        for epoch in epochs {
            by_epoch.remove(epoch);
        }
    }

    pub(super) fn sweep(&self, now: u64) {
        self.by_epoch.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| {
                !idle.sender.is_closed() && now.saturating_sub(idle.since) <= IDLE_MS
            });
            !idle.is_empty()
        });
    }
}

/// A connection while a request uses it. Dropped, it closes; given back, the next may have it.
pub(super) struct Lease {
    pub(super) pool: Rc<Pool>,
    pub(super) instance: Arc<Instance>,
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) shared: Arc<Shared>,
}

impl Lease {
    pub(super) fn give_back(self) {
        let Self {
            pool,
            instance,
            sender,
            shared,
        } = self;
        pool.put(&instance, sender, shared.coarse_now().0);
    }
}
