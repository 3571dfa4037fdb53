//! What one serving thread has: its own connections to instances, and its share of everything that is under way. What
//! is shared with the other threads is the table and the counts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::sync::Semaphore;

use super::Limits;
use super::connection::ClientSide;
use super::flight::Flight;
use super::log::say;
use super::pool::Pool;
use super::slots::Slots;
use super::table::{LiveRoute, Shared};
use super::tunnel::Tunnels;

/// Between two lines about the same trouble.
const SAY_AGAIN_MS: u64 = 5_000;

/// Since when it accepts nothing, and how it ends.
#[derive(Clone, Copy)]
pub(super) struct Retired {
    pub(super) at: u64,
    pub(super) idle: Duration,
    pub(super) cut_at: u64,
}

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) limits: Limits,
    pub(super) pool: Rc<Pool>,
    pub(super) flights: Rc<RefCell<Slots<Rc<Flight>>>>,
    pub(super) tunnels: Tunnels,
    pub(super) clients: RefCell<Slots<Arc<ClientSide>>>,
    pub(super) room: Arc<Semaphore>,
    pub(super) retired: Cell<Option<Retired>>,
    pub(super) random_state: Cell<u64>,
}

impl Worker {
    pub(super) fn is_retiring(&self) -> bool {
        self.retired.get().is_some()
    }

    /// A number below `below`, which is not 0.
    pub(super) fn random(&self, below: usize) -> usize {
        // xorshift64*: good enough to spread load, and nothing secret is made of it.
        let mut random_state = self.random_state.get();
        random_state ^= random_state >> 12;
        random_state ^= random_state << 25;
        random_state ^= random_state >> 27;
        self.random_state.set(random_state);
        let scattered = random_state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16;
        usize::try_from(scattered).unwrap_or(0) % below.max(1)
    }

    pub(super) fn new_request_id(&self) -> HeaderValue {
        let id = format!(
            "{:016x}{:08x}",
            self.random_state.get(),
            self.random(1 << 32)
        );
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }

    pub(super) fn say_fail_open(&self, route: &LiveRoute) {
        let now = self.shared.coarse_now().0.max(1);
        let before = self.shared.fail_open_said.load(SeqCst);
        let is_due = before == 0 || now.saturating_sub(before) >= SAY_AGAIN_MS;
        if is_due
            && self
                .shared
                .fail_open_said
                .compare_exchange(before, now, SeqCst, SeqCst)
                .is_ok()
        {
            say(&format!(
                "every instance of {} failed of late: requests go to the least bad",
                route.service
            ));
        }
    }
}
