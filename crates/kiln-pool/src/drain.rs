//! Which drains are over, and which have had their time.
//!
//! `handle_*` first, then [`Drains::poll_action`] until `None`, then wait until [`Drains::poll_timeout`] or until
//! a count changes. An instance is said to be drained once for each generation that names it, so that a
//! controller that asks again is answered again.

use std::collections::BTreeMap;

use kiln_model::{Draining, Generation, InstanceId};

use crate::Moment;

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainAction {
    /// Its drain begins: tunnels get their times to end, spread so that the last ends at the deadline.
    Begin {
        instance: InstanceId,
        deadline: Moment,
    },
    /// The deadline is past: end every request that is left.
    Cut { instance: InstanceId },
    /// Nothing is in flight any more.
    Drained {
        generation: Generation,
        instance: InstanceId,
    },
}

#[derive(Clone, Debug)]
struct Drain {
    deadline: Moment,
    in_flight: u64,
    begun: bool,
    cut: bool,
    /// Under which generation it was said.
    said: Option<Generation>,
}

/// Every drain of the present table.
#[derive(Clone, Debug, Default)]
pub struct Drains {
    generation: Generation,
    drains: BTreeMap<InstanceId, Drain>,
}

impl Drains {
    /// A table is served from now on by every worker; `in_flight` counts what each draining instance still has.
    /// A drain that was under way keeps its deadline. The same table again: everything is said again.
    pub fn handle_table(
        &mut self,
        now: Moment,
        generation: Generation,
        draining: &[Draining],
        in_flight: impl Fn(&InstanceId) -> u64,
    ) {
        self.generation = generation;
        let mut before = std::mem::take(&mut self.drains);
        for Draining {
            instance, deadline, ..
        } in draining
        {
            let drain = before.remove(instance).unwrap_or(Drain {
                deadline: now.plus(*deadline),
                in_flight: 0,
                begun: false,
                cut: false,
                said: None,
            });
            let drain = Drain {
                in_flight: in_flight(instance),
                said: None,
                ..drain
            };
            self.drains.insert(instance.clone(), drain);
        }
    }

    pub fn handle_count(&mut self, instance: &InstanceId, in_flight: u64) {
        if let Some(drain) = self.drains.get_mut(instance) {
            drain.in_flight = in_flight;
        }
    }

    pub fn poll_action(&mut self, now: Moment) -> Option<DrainAction> {
        for (instance, drain) in &mut self.drains {
            if !drain.begun {
                drain.begun = true;
                return Some(DrainAction::Begin {
                    instance: instance.clone(),
                    deadline: drain.deadline,
                });
            }
            if drain.in_flight == 0 {
                if drain.said != Some(self.generation) {
                    drain.said = Some(self.generation);
                    return Some(DrainAction::Drained {
                        generation: self.generation,
                        instance: instance.clone(),
                    });
                }
            } else if !drain.cut && now >= drain.deadline {
                drain.cut = true;
                return Some(DrainAction::Cut {
                    instance: instance.clone(),
                });
            }
        }
        None
    }

    /// The next deadline that something still waits for.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.drains
            .values()
            .filter(|drain| drain.in_flight > 0 && !drain.cut)
            .map(|drain| drain.deadline)
            .min()
    }

    /// Those whose counts are waited for.
    pub fn waiting(&self) -> impl Iterator<Item = &InstanceId> {
        self.drains
            .iter()
            .filter(|(_, drain)| drain.in_flight > 0)
            .map(|(instance, _)| instance)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_model::{ReleaseNumber, ServiceKey};

    use super::*;

    fn draining(id: &str, seconds: u64) -> Draining {
        Draining {
            service: service(),
            release: ReleaseNumber(1),
            instance: InstanceId::new(id),
            deadline: Duration::from_secs(seconds),
        }
    }

    fn service() -> ServiceKey {
        ServiceKey::try_from("dev/api".to_owned()).unwrap()
    }

    fn actions(drains: &mut Drains, now: u64) -> Vec<DrainAction> {
        std::iter::from_fn(|| drains.poll_action(Moment(now))).collect()
    }

    fn begin(id: &str, deadline: u64) -> DrainAction {
        DrainAction::Begin {
            instance: InstanceId::new(id),
            deadline: Moment(deadline),
        }
    }

    fn drained(generation: u64, id: &str) -> DrainAction {
        DrainAction::Drained {
            generation: Generation(generation),
            instance: InstanceId::new(id),
        }
    }

    #[test]
    fn draining_with_nothing_in_flight_returns_at_once() {
        let mut drains = Drains::default();
        drains.handle_table(Moment(0), Generation(4), &[draining("a", 30)], |_| 0);
        assert_eq!(
            actions(&mut drains, 0),
            [begin("a", 30_000), drained(4, "a")]
        );
        assert_eq!(drains.poll_timeout(), None);
        assert_eq!(actions(&mut drains, 60_000), []);
    }

    #[test]
    fn what_ends_in_time_is_not_cut_and_what_does_not_is_cut_once() {
        let mut drains = Drains::default();
        let both = [draining("a", 30), draining("b", 10)];
        drains.handle_table(Moment(0), Generation(4), &both, |_| 2);
        assert_eq!(
            actions(&mut drains, 0),
            [begin("a", 30_000), begin("b", 10_000)]
        );
        assert_eq!(drains.poll_timeout(), Some(Moment(10_000)));
        drains.handle_count(&InstanceId::new("a"), 0);
        assert_eq!(actions(&mut drains, 9_999), [drained(4, "a")]);
        let cut = DrainAction::Cut {
            instance: InstanceId::new("b"),
        };
        assert_eq!(actions(&mut drains, 10_000), [cut]);
        assert_eq!(drains.poll_timeout(), None);
        drains.handle_count(&InstanceId::new("b"), 0);
        assert_eq!(actions(&mut drains, 10_001), [drained(4, "b")]);
    }

    #[test]
    fn the_next_table_keeps_deadlines_and_says_everything_again() {
        let mut drains = Drains::default();
        drains.handle_table(Moment(0), Generation(4), &[draining("a", 30)], |_| 1);
        actions(&mut drains, 0);
        drains.handle_table(Moment(20_000), Generation(5), &[draining("a", 30)], |_| 1);
        assert_eq!(drains.poll_timeout(), Some(Moment(30_000)));
        drains.handle_count(&InstanceId::new("a"), 0);
        assert_eq!(actions(&mut drains, 20_001), [drained(5, "a")]);
        drains.handle_table(Moment(21_000), Generation(5), &[draining("a", 30)], |_| 0);
        assert_eq!(actions(&mut drains, 21_000), [drained(5, "a")]);
    }
}
