//! Choosing in apt's own order (`MarkInstall` of its depcache.cc): what was asked for is there from the start; then each package's
//! dependencies one after the other, each to its end. So what an alternative is decided by is what is there at that moment, and not what
//! comes later. Recommendations follow the dependencies of their package.

use crate::debian::universe::{Chosen, Universe};

/// Packages that are tried. Where this is not enough, the packages exclude each other in ways that need a search.
const TRIES: usize = 100_000;

struct Marking<'u, 'a> {
    universe: &'u Universe<'a>,
    chosen: Chosen,
    /// What was chosen here, in its order.
    order: Vec<usize>,
    recommends: bool,
    tries: usize,
}

/// What apt takes over `base`. `None`: what excludes each other is in the way, and another choice may go.
pub(crate) fn mark(
    universe: &Universe<'_>,
    base: &Chosen,
    requested: &[usize],
    virtuals: &[Vec<usize>],
    recommends: bool,
) -> Option<Chosen> {
    let mut marking = Marking {
        universe,
        chosen: base.clone(),
        order: Vec::new(),
        recommends,
        tries: TRIES,
    };
    let all = requested.iter().all(|index| marking.add(*index))
        && requested.iter().all(|index| marking.needs(*index))
        && virtuals.iter().all(|candidates| marking.one_of(candidates));
    // Without tries left, recommendations were refused that may be had.
    (all && marking.tries > 0).then_some(marking.chosen)
}

impl Marking<'_, '_> {
    fn add(&mut self, index: usize) -> bool {
        match self.chosen.add(self.universe, index) {
            Ok(is_new) => {
                if is_new {
                    self.order.push(index);
                }
                true
            }
            Err(_) => false,
        }
    }

    /// A package with all that it needs, or nothing of that.
    fn take(&mut self, index: usize) -> bool {
        let before = self.order.len();
        self.tries = self.tries.saturating_sub(1);
        if self.tries > 0 && self.add(index) && self.needs(index) {
            return true;
        }
        for index in self.order.drain(before..).rev() {
            self.chosen.remove(self.universe, index);
        }
        false
    }

    fn needs(&mut self, index: usize) -> bool {
        let universe = self.universe;
        let relations = universe.relations(index);
        for group in &relations.depends {
            if !self.one_of(&universe.group(group)) {
                return false;
            }
        }
        if self.recommends {
            for group in &relations.recommends {
                // One that can't be had is not asked for.
                self.one_of(&universe.group(group));
            }
        }
        true
    }

    fn one_of(&mut self, candidates: &[usize]) -> bool {
        let is_there = |index: &usize| self.chosen.all.contains(index);
        candidates.iter().any(is_there) || candidates.iter().any(|index| self.take(*index))
    }
}
