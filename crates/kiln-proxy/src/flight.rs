//! One request, from the choice of its instance to the end of its answer: what it counts in, what it waits for,
//! and how it is ended from outside.
//!
//! Times are not kept by a timer for each request: the worker's sweep looks at every flight four times a second.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Poll, Waker};

use super::Limits;
use super::connection::ClientSide;
use super::counters::Counters;
use super::slots::Slots;
use super::table::{Instance, Shared};

/// Why a request was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// Its instance's drain had its time.
    Drain,
    /// The proxy itself ends.
    Retire,
    /// The instance gave no answer in time.
    NoAnswer,
    /// The client sent no more of its request in time.
    SlowRequest,
    /// The instance sent no more of its answer in time.
    SlowAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Request,
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    Client,
    Instance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Served,
    Failed,
    Cancelled,
    /// Answered by the proxy because the request itself is at fault.
    Refused,
}

/// How the body of a request ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadBody {
    Malformed,
    Gone,
}

/// Shared within the worker by everything that moves the request.
pub(super) struct Flight {
    shared: Arc<Shared>,
    pub(super) client_side: Arc<ClientSide>,
    instance: RefCell<Option<Arc<Instance>>>,
    counters: RefCell<Option<Arc<Counters>>>,
    stage: Cell<Stage>,
    waits_for: Cell<WaitsFor>,
    /// When a byte last moved.
    touched: Cell<u64>,
    /// An event stream: silence is usual.
    quiet: Cell<bool>,
    end_reason: Cell<Option<EndReason>>,
    outcome: Cell<Outcome>,
    pub(super) bad_body: Cell<Option<BadBody>>,
    /// Something of the request's body was read, so it can't be sent again.
    pub(super) body_taken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Flight {
    pub(super) fn new(shared: &Arc<Shared>, client_side: &Arc<ClientSide>) -> Rc<Self> {
        Rc::new(Self {
            shared: Arc::clone(shared),
            client_side: Arc::clone(client_side),
            instance: RefCell::new(None),
            counters: RefCell::new(None),
            stage: Cell::new(Stage::Request),
            waits_for: Cell::new(WaitsFor::Instance),
            touched: Cell::new(shared.coarse_now().0),
            quiet: Cell::new(false),
            end_reason: Cell::new(None),
            // Whoever drops it without a word is the client's connection that went away.
            outcome: Cell::new(Outcome::Cancelled),
            bad_body: Cell::new(None),
            body_taken: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// Counts in `counters` from now on, and no more in those before.
    pub(super) fn count_in(&self, counters: &Arc<Counters>) {
        counters.in_flight.fetch_add(1, Relaxed);
        if let Some(before) = self.counters.replace(Some(Arc::clone(counters))) {
            before.in_flight.fetch_sub(1, Relaxed);
        }
    }

    /// Takes over a count that was added to the instance already.
    pub(super) fn holds(&self, instance: Arc<Instance>) {
        self.release();
        self.instance.replace(Some(instance));
    }

    /// The instance has nothing more to do with it.
    pub(super) fn release(&self) {
        if let Some(instance) = self.instance.take() {
            if self.end_reason.get() == Some(EndReason::Drain) {
                instance.cut.fetch_add(1, SeqCst);
            }
            self.shared.leave(&instance);
        }
    }

    pub(super) fn is_at(&self, epoch: u64) -> bool {
        self.instance
            .borrow()
            .as_ref()
            .is_some_and(|instance| instance.epoch == epoch)
    }

    pub(super) fn touch(&self, waits_for: WaitsFor) {
        self.waits_for.set(waits_for);
        self.touched.set(self.shared.coarse_now().0);
    }

    pub(super) fn waits_for(&self, waits_for: WaitsFor) {
        self.waits_for.set(waits_for);
    }

    pub(super) fn answered(&self, status: u16, quiet: bool) {
        self.stage.set(Stage::Answer);
        self.quiet.set(quiet);
        self.touch(WaitsFor::Client);
        if let Some(counters) = &*self.counters.borrow() {
            counters.answered(status);
        }
    }

    pub(super) fn outcome(&self, outcome: Outcome) {
        self.outcome.set(outcome);
    }

    pub(super) fn end_reason(&self) -> Option<EndReason> {
        self.end_reason.get()
    }

    pub(super) fn end(&self, end_reason: EndReason) {
        if self.end_reason.get().is_none() {
            self.end_reason.set(Some(end_reason));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_by(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
    }

    /// Ends it if it has waited too long for somebody.
    pub(super) fn sweep(&self, now: u64, limits: &Limits) {
        let waited = u128::from(now.saturating_sub(self.touched.get()));
        match (self.stage.get(), self.waits_for.get()) {
            (Stage::Request, WaitsFor::Instance) if waited > limits.answer.as_millis() => {
                self.end(EndReason::NoAnswer);
            }
            (Stage::Request, WaitsFor::Client) if waited > limits.body.as_millis() => {
                self.end(EndReason::SlowRequest);
            }
            (Stage::Answer, WaitsFor::Instance)
                if waited > limits.body.as_millis() && !self.quiet.get() =>
            {
                self.end(EndReason::SlowAnswer);
            }
            // Blocked in writing to the client: nobody asks the body, so the connection itself is ended.
            (Stage::Answer, WaitsFor::Client) if waited > limits.body.as_millis() => {
                self.client_side.abort()
            }
            _ => {}
        }
    }

    /// What `work` gives, unless the request is ended before.
    pub(super) async fn unless_ended<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, EndReason> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Some(end_reason) = self.end_reason.get() {
                return Poll::Ready(Err(end_reason));
            }
            self.wake_by(context);
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    fn finish(&self) {
        self.release();
        let Some(counters) = self.counters.take() else {
            return;
        };
        counters.in_flight.fetch_sub(1, Relaxed);
        match self.outcome.get() {
            Outcome::Served => &counters.served,
            Outcome::Failed => &counters.failed,
            Outcome::Cancelled => &counters.cancelled,
            Outcome::Refused => return,
        }
        .fetch_add(1, Relaxed);
    }
}

/// Ends the flight when it is dropped, and counts it: exactly once, however it came about.
pub(super) struct Ticket {
    pub(super) flight: Rc<Flight>,
    flights: Rc<RefCell<Slots<Rc<Flight>>>>,
    slot: usize,
}

impl Ticket {
    pub(super) fn new(flight: Rc<Flight>, flights: &Rc<RefCell<Slots<Rc<Flight>>>>) -> Self {
        let slot = flights.borrow_mut().insert(Rc::clone(&flight));
        Self {
            flight,
            flights: Rc::clone(flights),
            slot,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.flights.borrow_mut().remove(self.slot);
        self.flight.finish();
        self.flight.client_side.request_ended();
    }
}
