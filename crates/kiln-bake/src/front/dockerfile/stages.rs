//! Which stages are baked when: every one that the target needs as soon as what it takes from is there, those that need nothing of
//! each other at the same time. What comes out does not depend on the order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kiln_config::dockerfile::{Action, Dockerfile};

use super::bake::Bake;
use super::schedule::lock;
use super::scope::Scope;
use super::stage::Stage;
use crate::error::BakeError;

/// More stages than these are taken one after the other.
const THREADS_MAX: usize = 64;

impl Bake<'_> {
    /// The stage of this number: carried out once, by whoever asks first.
    pub(super) fn stage(&self, index: usize) -> Result<Arc<Stage>, BakeError> {
        self.schedule.stage(index, || (self.carry_out)(self, index))
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
