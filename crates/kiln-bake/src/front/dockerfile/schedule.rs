//! Which stages are there, which are carried out, and how many steps are carried out at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::stage::Stage;
use crate::error::BakeError;

enum Slot {
    Idle,
    Running,
    Done(Arc<Stage>),
    Failed,
}

pub(super) struct Schedule {
    slots: Mutex<Vec<Slot>>,
    /// Steps that may begin beside those that are carried out.
    room: Mutex<usize>,
    left: Condvar,
    changed: Condvar,
    /// A stage has failed: what the others do is for nothing.
    stopped: AtomicBool,
}

/// A poisoned lock is one whose holder panicked, which ends the bake anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Schedule {
    pub(super) fn new(stages: usize) -> Self {
        // One that waits for the network leaves a single processor idle.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            slots: Mutex::new((0..stages).map(|_| Slot::Idle).collect()),
            room: Mutex::new(cores.max(2)),
            left: Condvar::new(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    /// The stage of this number: carried out once, by whoever asks first; the others wait.
    pub(super) fn stage(
        &self,
        index: usize,
        carry_out: impl FnOnce() -> Result<Stage, BakeError>,
    ) -> Result<Arc<Stage>, BakeError> {
        let mut slots = lock(&self.slots);
        loop {
            match &slots[index] {
                Slot::Done(stage) => return Ok(stage.clone()),
                // Who carried it out tells why.
                Slot::Failed => return Err(BakeError::Stopped),
                Slot::Running => {
                    slots = self
                        .changed
                        .wait(slots)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Slot::Idle => break,
            }
        }
        slots[index] = Slot::Running;
        drop(slots);
        let mut running = Running {
            schedule: self,
            index,
            result: Slot::Failed,
        };
        let stage = Arc::new(carry_out()?);
        running.result = Slot::Done(stage.clone());
        Ok(stage)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Whether nobody did before.
    pub(super) fn stop(&self) -> bool {
        !self.stopped.swap(true, Ordering::Relaxed)
    }

    /// Waits until a step may begin; it is over when the result is dropped.
    pub(super) fn room(&self) -> Room<'_> {
        let mut room = lock(&self.room);
        while *room == 0 {
            room = self.left.wait(room).unwrap_or_else(PoisonError::into_inner);
        }
        *room -= 1;
        Room(self)
    }
}

pub(super) struct Room<'a>(&'a Schedule);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *lock(&self.0.room) += 1;
        self.0.left.notify_one();
    }
}

/// A stage that is carried out; without a result it has failed, also when it panicked.
struct Running<'a> {
    schedule: &'a Schedule,
    index: usize,
    result: Slot,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.result, Slot::Failed) {
            self.schedule.stop();
        }
        let result = std::mem::replace(&mut self.result, Slot::Failed);
        lock(&self.schedule.slots)[self.index] = result;
        self.schedule.changed.notify_all();
    }
}
