//! The model engine: what becomes of an instance that is started, by the quality of its release and by bad luck.

use std::collections::BTreeMap;

use kiln_model::{
    ActionId, ExitReason, ExitRecord, InstanceId, StartFailure, StartFault, Timestamp,
};
use kiln_plan::{Event, ProbeKind};

use crate::random::Random;

/// How a release behaves. The first word of its command names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quality {
    Good,
    NeverReady,
    ExitsAtOnce,
    CannotStart,
    /// Ready, and dies some seconds later while faults last.
    DiesSoon,
}

impl Quality {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::NeverReady => "never-ready",
            Self::ExitsAtOnce => "exits-at-once",
            Self::CannotStart => "cannot-start",
            Self::DiesSoon => "dies-soon",
        }
    }

    pub(crate) fn of(word: &str) -> Self {
        [
            Self::NeverReady,
            Self::ExitsAtOnce,
            Self::CannotStart,
            Self::DiesSoon,
        ]
        .into_iter()
        .find(|quality| quality.word() == word)
        .unwrap_or(Self::Good)
    }
}

/// The truth about one instance, whatever the planner believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    Starting,
    Alive,
    Dead,
    Removed,
}

pub(crate) struct Made {
    pub(crate) truth: Truth,
    pub(crate) start: ActionId,
    pub(crate) stop: Option<ActionId>,
    pub(crate) pid: u32,
}

pub(crate) struct Engine {
    pub(crate) random: Random,
    pub(crate) made: BTreeMap<InstanceId, Made>,
    pids: u32,
}

/// What the engine will say or do, after so many milliseconds.
pub(crate) type Later = (u64, Happening);

pub(crate) enum Happening {
    /// An observation for the controller.
    Seen(Box<Event>),
    /// The instance changes before anyone sees it.
    Becomes(InstanceId, Truth),
}

impl Engine {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, 1),
            made: BTreeMap::new(),
            pids: 100,
        }
    }

    pub(crate) fn is_alive(&self, id: &InstanceId) -> bool {
        self.made
            .get(id)
            .is_some_and(|made| matches!(made.truth, Truth::Starting | Truth::Alive))
    }

    /// `Err`: it was started before by another action.
    pub(crate) fn start(
        &mut self,
        id: &InstanceId,
        action: ActionId,
        quality: Quality,
        faults: bool,
        now: Timestamp,
    ) -> Result<Vec<Later>, ActionId> {
        if let Some(made) = self.made.get(id) {
            if made.start != action {
                return Err(made.start);
            }
            // Asked again after a restart of the controller: said again.
            return Ok(match made.truth {
                Truth::Starting => Vec::new(),
                Truth::Alive => vec![(1, Happening::Seen(Box::new(started(id, made.pid, now))))],
                Truth::Dead => vec![(1, exit(id, ExitReason::Lost, now))],
                Truth::Removed => Vec::new(),
            });
        }
        self.pids += 1;
        self.made.insert(
            id.clone(),
            Made {
                truth: Truth::Starting,
                start: action,
                stop: None,
                pid: self.pids,
            },
        );
        let slow = if faults && self.random.percent(5) {
            20_000
        } else {
            0
        };
        let up = self.random.between(5, 800) + slow;
        if quality == Quality::CannotStart {
            let failure =
                StartFailure::new(StartFault::CommandNotFound, "the image has no such command");
            return Ok(vec![
                (up, Happening::Becomes(id.clone(), Truth::Dead)),
                (
                    up,
                    Happening::Seen(Box::new(Event::StartFailed {
                        instance: id.clone(),
                        failure,
                    })),
                ),
            ]);
        }
        let mut later = vec![
            (up, Happening::Becomes(id.clone(), Truth::Alive)),
            (up, Happening::Seen(Box::new(started(id, self.pids, now)))),
        ];
        let lies = faults && self.random.percent(2);
        if lies || quality == Quality::ExitsAtOnce {
            let ends = up + self.random.between(1, 300);
            let reason = if lies {
                ExitReason::Lost
            } else {
                ExitReason::Exited { code: 3 }
            };
            later.push((ends, Happening::Becomes(id.clone(), Truth::Dead)));
            later.push((ends, exit(id, reason, now)));
            return Ok(later);
        }
        if quality == Quality::NeverReady {
            return Ok(later);
        }
        let ready = up + self.random.between(5, 1_500);
        for kind in [ProbeKind::Live, ProbeKind::Ready] {
            later.push((ready, Happening::Seen(Box::new(probed(id, kind, true)))));
        }
        if !faults {
            return Ok(later);
        }
        if quality == Quality::DiesSoon || self.random.percent(12) {
            let dies = ready + self.random.between(0, 20_000);
            later.push((dies, Happening::Becomes(id.clone(), Truth::Dead)));
            later.push((
                dies + self.random.between(0, 200),
                exit(id, ExitReason::Signalled { signal: 11 }, now),
            ));
        }
        if self.random.percent(12) {
            let flap = ready + self.random.between(0, 30_000);
            let over = flap + self.random.between(1, 5_000);
            later.push((
                flap,
                Happening::Seen(Box::new(probed(id, ProbeKind::Ready, false))),
            ));
            later.push((
                over,
                Happening::Seen(Box::new(probed(id, ProbeKind::Ready, true))),
            ));
        }
        if self.random.percent(4) {
            let at = ready + self.random.between(0, 40_000);
            later.push((
                at,
                Happening::Seen(Box::new(probed(id, ProbeKind::Live, false))),
            ));
        }
        Ok(later)
    }

    pub(crate) fn stop(
        &mut self,
        id: &InstanceId,
        action: ActionId,
        grace: u64,
        now: Timestamp,
    ) -> Vec<Later> {
        let takes = self.random.between(1, grace.max(1));
        let Some(made) = self.made.get_mut(id) else {
            return vec![(1, exit(id, ExitReason::Lost, now))];
        };
        if made.stop == Some(action) && made.truth == Truth::Alive {
            return Vec::new();
        }
        made.stop = Some(action);
        match made.truth {
            Truth::Starting | Truth::Alive => vec![
                (takes, Happening::Becomes(id.clone(), Truth::Dead)),
                (takes, exit(id, ExitReason::Signalled { signal: 15 }, now)),
            ],
            Truth::Dead | Truth::Removed => vec![(1, exit(id, ExitReason::Lost, now))],
        }
    }

    pub(crate) fn remove(&mut self, id: &InstanceId) -> Vec<Later> {
        let takes = self.random.between(1, 200);
        vec![
            (takes, Happening::Becomes(id.clone(), Truth::Removed)),
            (
                takes,
                Happening::Seen(Box::new(Event::Removed {
                    instance: id.clone(),
                })),
            ),
        ]
    }
}

fn probed(id: &InstanceId, probe: ProbeKind, passes: bool) -> Event {
    Event::Probed {
        instance: id.clone(),
        probe,
        passes,
    }
}

fn started(id: &InstanceId, pid: u32, at: Timestamp) -> Event {
    Event::Started {
        instance: id.clone(),
        pid: Some(pid),
        endpoint: Some(([10, 0, 0, 2], 3000).into()),
        at,
    }
}

pub(crate) fn exit(id: &InstanceId, reason: ExitReason, at: Timestamp) -> Happening {
    Happening::Seen(Box::new(Event::Exited {
        instance: id.clone(),
        record: ExitRecord {
            reason,
            at,
            last_lines: vec!["cannot open the configuration".to_owned()],
        },
    }))
}
