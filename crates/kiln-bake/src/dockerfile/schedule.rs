//! Which stages are baked when: every one that the target needs as soon as what it takes from is there, those that need nothing of
//! each other at the same time. What comes out does not depend on the order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kiln_config::dockerfile::{Action, Dockerfile};

use super::scope::Scope;
use super::{Bake, Stage};
use crate::error::BakeError;

/// More stages than these are taken one after the other.
const THREADS_MAX: usize = 64;

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

impl Bake<'_> {
    /// The stage of this number: carried out once, by whoever asks first.
    pub(super) fn stage(&self, index: usize) -> Result<Arc<Stage>, BakeError> {
        let mut slots = lock(&self.schedule.slots);
        loop {
            match &slots[index] {
                Slot::Done(stage) => return Ok(stage.clone()),
                // Who carried it out tells why.
                Slot::Failed => return Err(BakeError::Stopped),
                Slot::Running => {
                    slots = self
                        .schedule
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
            schedule: &self.schedule,
            index,
            result: Slot::Failed,
        };
        let stage = Arc::new(super::stage::carry_out(self, index)?);
        running.result = Slot::Done(stage.clone());
        Ok(stage)
    }

    /// Carries out the target and what it needs.
    pub(super) fn all(&self, target: usize) -> Result<Arc<Stage>, BakeError> {
        let needed = needed(self, target);
        // In the order of the file: whatever one waits for has been begun.
        let count = needed.len().min(THREADS_MAX);
        let open = Mutex::new(needed.into_iter());
        let mut results: Vec<_> = std::thread::scope(|scope| {
            let work = || {
                let next = || lock(&open).next();
                std::iter::from_fn(|| next().map(|index| (index, self.stage(index))))
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.flatten().collect()
        });
        results.sort_by_key(|(index, _)| *index);
        // The one that failed by itself, and of several the first in the file.
        let failed = results
            .iter()
            .position(
                |(_, result)| matches!(result, Err(error) if !matches!(error, BakeError::Stopped)),
            )
            .or_else(|| results.iter().position(|(index, _)| *index == target))
            .unwrap_or(0);
        results.swap_remove(failed).1
    }
}

/// The numbers of the target and of all that it takes from, as far as the file says it. What is only known later (from an ONBUILD of a
/// base) is carried out by who asks for it.
fn needed(bake: &Bake<'_>, target: usize) -> BTreeSet<usize> {
    let file = bake.request.dockerfile;
    let mut all = BTreeSet::new();
    let mut open = vec![target];
    while let Some(index) = open.pop() {
        if all.insert(index) {
            open.extend(taken_from(bake, file, index));
        }
    }
    all
}

fn taken_from(bake: &Bake<'_>, file: &Dockerfile, index: usize) -> Vec<usize> {
    let stage = &file.stages[index];
    // What is wrong with it is told when the stage is carried out.
    let base = Scope::new(&[], &bake.globals)
        .expand(file, &stage.from.image)
        .ok()
        .and_then(|name| file.stage_called(&name, index));
    let mut found: Vec<usize> = base.into_iter().collect();
    for instruction in &stage.instructions {
        // A named context hides a stage.
        let is_stage = |name: &String| !bake.request.contexts.contains_key(name);
        match &instruction.action {
            Action::Copy(copy) | Action::Add(copy) => {
                let names = copy.from.iter().map(|name| &name.text);
                let stages = names.filter(|name| is_stage(name));
                found.extend(stages.filter_map(|name| file.stage(name, index)));
            }
            Action::Run(run) => {
                let names = run.mounted_from().into_iter().filter(is_stage);
                found.extend(names.filter_map(|name| file.stage_called(&name, index)));
            }
            _ => {}
        }
    }
    found
}
