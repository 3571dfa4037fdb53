//! The threads that load: each sends one request after the other at its own constant pace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::exchange::Connection;
use super::gate::Gate;
use super::request::Request;
use super::tally::{Loss, LossRecord, Tally};

#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadOptions {
    pub(crate) address: SocketAddr,
    pub(crate) workers: u64,
    /// Requests per second, of all workers together.
    pub(crate) rate: u64,
    /// For a connection, and between two reads of an answer.
    pub(crate) timeout: Duration,
}

/// A load that runs until it is finished or dropped.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Load {
    pub(crate) fn start(options: LoadOptions, gate: &Arc<Gate>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let lost = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let threads = (0..options.workers)
            .map(|number| {
                let mut worker = Worker {
                    number,
                    options,
                    gate: Arc::clone(gate),
                    begun,
                    kept: None,
                    tally: Tally::default(),
                };
                let (stop, sent, lost) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&lost));
                std::thread::spawn(move || {
                    worker.run(&stop, &sent, &lost);
                    worker.tally
                })
            })
            .collect();
        Self {
            stop,
            sent,
            lost,
            threads,
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the load, waits for what is in flight, and counts.
    pub(crate) fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => tally.add(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    number: u64,
    options: LoadOptions,
    gate: Arc<Gate>,
    begun: Instant,
    kept: Option<Connection>,
    tally: Tally,
}

impl Worker {
    fn run(&mut self, stop: &AtomicBool, sent: &AtomicU64, lost: &AtomicU64) {
        let LoadOptions { workers, rate, .. } = self.options;
        let pace = Duration::from_secs(workers) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
        // Spread over the first period, so that the workers don't march in step.
        let mut due = self.begun
            + pace * u32::try_from(self.number).unwrap_or(0)
                / u32::try_from(workers.max(1)).unwrap_or(1);
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if let Some(early) = due.checked_duration_since(now) {
                std::thread::sleep(early);
            } else {
                // Late ones are not caught up with: a burst after a stall would be another load.
                due = now;
            }
            due += pace;
            if !self.one(count) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
            sent.fetch_add(1, Ordering::Relaxed);
            count += 1;
        }
        self.tally.elapsed = self.begun.elapsed();
    }

    /// Whether the answer was whole, right, and of a release that may serve.
    fn one(&mut self, count: u64) -> bool {
        let (request, new_connection) = Request::numbered(self.number, count);
        let host = self.options.address.to_string();
        let epoch = self.gate.begin();
        let start = Instant::now();
        let mut release = String::new();
        let outcome = self.connection(new_connection).and_then(|mut connection| {
            let answer = connection.exchange(&request, &host)?;
            release = answer.release;
            let number = release.rsplit_once('@').and_then(|(_, n)| n.parse().ok());
            if !number.is_some_and(|number| self.gate.allows(number, epoch)) {
                return Err(Loss::WrongRelease);
            }
            Ok(connection)
        });
        match outcome {
            Ok(connection) => {
                self.tally
                    .answer(start.elapsed(), matches!(request, Request::Slow { .. }));
                if !new_connection && connection.reusable() {
                    self.kept = Some(connection);
                }
                true
            }
            Err(loss) => {
                self.tally.loss(LossRecord {
                    at: self.begun.elapsed(),
                    loss,
                    request: request.name(),
                    new_connection,
                    release,
                });
                false
            }
        }
    }

    fn connection(&mut self, new: bool) -> Result<Connection, Loss> {
        match self.kept.take() {
            Some(kept) if !new => Ok(kept),
            kept => {
                self.kept = kept;
                Connection::open(self.options.address, self.options.timeout)
            }
        }
    }
}
