//! The simulated engine: the second implementation of the engine protocol. What becomes of an instance that is started hangs on
//! the quality of its release and on bad luck.

use std::collections::BTreeMap;

use kiln_model::{
    Command, ExitReason, ExitRecord, Generation, InstanceId, Observation, SeenInstance, SeenState,
    StartFailure, StartFault, Timestamp,
};

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

    /// A set of it can be ready, and stay so once faults have ceased.
    pub(crate) fn is_able(self) -> bool {
        matches!(self, Self::Good | Self::DiesSoon)
    }
}

/// The truth about one instance, whatever the controller believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    Starting,
    Alive,
    Dead,
    Removed,
}

#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) truth: Truth,
    start: Generation,
    pid: u32,
    port: Option<u16>,
    /// From when on its ready probe passes, and when that changes.
    pub(crate) ready: Vec<(u64, bool)>,
    /// When its live probe fails.
    pub(crate) lifeless_at: Option<u64>,
    ended: ExitReason,
}

impl Made {
    pub(crate) fn set(&mut self, truth: Truth, reason: ExitReason) {
        self.truth = truth;
        if truth == Truth::Dead {
            self.ended = reason;
        }
    }
}

pub(crate) struct Engine {
    random: Random,
    pub(crate) made: BTreeMap<InstanceId, Made>,
    pids: u32,
    /// Stops and removals fail until then.
    pub(crate) broken_until: u64,
}

/// What happens after so many milliseconds.
pub(crate) type Later = (u64, Happening);

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Says(Box<Observation>),
    /// The instance changes before anyone sees it.
    Becomes(InstanceId, Truth, ExitReason),
}

fn says(observation: Observation) -> Happening {
    Happening::Says(Box::new(observation))
}

impl Engine {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, 1),
            made: BTreeMap::new(),
            pids: 100,
            broken_until: 0,
        }
    }

    pub(crate) fn is_alive(&self, id: &InstanceId) -> bool {
        self.made
            .get(id)
            .is_some_and(|made| matches!(made.truth, Truth::Starting | Truth::Alive))
    }

    /// An instance changes; what has ended does not come back.
    pub(crate) fn become_true(&mut self, id: &InstanceId, truth: Truth, reason: ExitReason) {
        if let Some(made) = self.made.get_mut(id) {
            let forward = match made.truth {
                Truth::Starting => true,
                Truth::Alive => truth != Truth::Starting,
                Truth::Dead => truth == Truth::Removed,
                Truth::Removed => false,
            };
            if forward {
                made.set(truth, reason);
            }
        }
    }

    /// An instance that no journal knows, of a root that was restored.
    pub(crate) fn leave_behind(&mut self, id: InstanceId) {
        self.made.insert(
            id,
            Made {
                truth: Truth::Alive,
                start: Generation(0),
                pid: 1,
                port: None,
                ready: Vec::new(),
                lifeless_at: None,
                ended: ExitReason::Lost,
            },
        );
    }

    /// `Err`: an instance is started by two commands.
    pub(crate) fn take(
        &mut self,
        command: &Command,
        faults: bool,
        now: u64,
    ) -> Result<Vec<Later>, String> {
        match command {
            Command::Start {
                instance,
                generation,
                release,
                ..
            } => {
                let quality = release
                    .command
                    .first()
                    .map_or(Quality::Good, |w| Quality::of(w));
                self.start(instance, *generation, quality, release.port, faults, now)
            }
            Command::Stop {
                instance, grace, ..
            } => Ok(self.stop(instance, crate::world::millis(*grace), faults, now)),
            Command::Remove { instance, .. } => Ok(self.remove(instance, faults, now)),
            Command::Scale { service, .. } => Err(format!(
                "{service} is scaled, and this engine keeps no sets"
            )),
            Command::Sync => Ok(self.sync(faults, now)),
        }
    }

    fn start(
        &mut self,
        id: &InstanceId,
        generation: Generation,
        quality: Quality,
        port: Option<u16>,
        faults: bool,
        now: u64,
    ) -> Result<Vec<Later>, String> {
        if let Some(made) = self.made.get(id) {
            if made.start != generation {
                return Err(format!(
                    "{id} is started twice, by {} and by {generation}",
                    made.start
                ));
            }
            // Asked again after a restart of the controller: said again.
            return Ok(match made.truth {
                Truth::Starting => Vec::new(),
                Truth::Alive => vec![(1, says(started(id, made, now)))],
                Truth::Dead | Truth::Removed => {
                    let failure = StartFailure::new(StartFault::Ended, "it has ended since");
                    vec![(1, says(start_failed(id, failure)))]
                }
            });
        }
        self.pids += 1;
        let mut made = Made {
            truth: Truth::Starting,
            start: generation,
            pid: self.pids,
            port,
            ready: Vec::new(),
            lifeless_at: None,
            ended: ExitReason::Lost,
        };
        let slow = if faults && self.random.percent(5) {
            20_000
        } else {
            0
        };
        let up = self.random.between(5, 800) + slow;
        let (alive, dead) = (Truth::Alive, Truth::Dead);
        let mut later = Vec::new();
        if quality == Quality::CannotStart {
            let fault = StartFault::CommandNotFound;
            let failure = StartFailure::new(fault, "the image has no such command");
            later.push((up, Happening::Becomes(id.clone(), dead, ExitReason::Lost)));
            later.push((up, says(start_failed(id, failure))));
            self.made.insert(id.clone(), made);
            return Ok(later);
        }
        later.push((up, Happening::Becomes(id.clone(), alive, ExitReason::Lost)));
        later.push((up, says(started(id, &made, now + up))));
        let lies = faults && self.random.percent(2);
        if lies || quality == Quality::ExitsAtOnce {
            let ends = up + self.random.between(1, 300);
            let reason = if lies {
                ExitReason::Lost
            } else {
                ExitReason::Exited { code: 3 }
            };
            later.push((ends, Happening::Becomes(id.clone(), dead, reason.clone())));
            later.push((ends, says(exited(id, reason, now + ends))));
            self.made.insert(id.clone(), made);
            return Ok(later);
        }
        if quality != Quality::NeverReady {
            let ready = up + self.random.between(5, 1_500);
            made.ready.push((now + ready, true));
            if faults {
                later.extend(self.bad_luck(id, quality, &mut made, ready, now));
            }
        }
        self.made.insert(id.clone(), made);
        Ok(later)
    }

    fn bad_luck(
        &mut self,
        id: &InstanceId,
        quality: Quality,
        made: &mut Made,
        ready: u64,
        now: u64,
    ) -> Vec<Later> {
        let mut later = Vec::new();
        if quality == Quality::DiesSoon || self.random.percent(12) {
            let dies = ready + self.random.between(0, 20_000);
            let reason = ExitReason::Signalled { signal: 11 };
            let dead = Truth::Dead;
            later.push((dies, Happening::Becomes(id.clone(), dead, reason.clone())));
            let told = dies + self.random.between(0, 200);
            later.push((told, says(exited(id, reason, now + dies))));
        }
        if self.random.percent(12) {
            let flaps = ready + self.random.between(0, 30_000);
            let over = flaps + self.random.between(1, 5_000);
            made.ready.push((now + flaps, false));
            made.ready.push((now + over, true));
        }
        if self.random.percent(4) {
            made.lifeless_at = Some(now + ready + self.random.between(0, 40_000));
        }
        later
    }

    fn fails(&mut self, id: &InstanceId, faults: bool, now: u64) -> Option<Vec<Later>> {
        if !faults || now >= self.broken_until {
            return None;
        }
        let takes = self.random.between(1, 50);
        let failed = Observation::Failed {
            instance: id.clone(),
            problem: "the disk is full".to_owned(),
        };
        Some(vec![(takes, says(failed))])
    }

    fn stop(&mut self, id: &InstanceId, grace: u64, faults: bool, now: u64) -> Vec<Later> {
        let takes = self.random.between(1, grace.max(1));
        if let Some(failed) = self.fails(id, faults, now) {
            return failed;
        }
        let term = ExitReason::Signalled { signal: 15 };
        match self.made.get(id).map(|made| (made.truth, &made.ended)) {
            Some((Truth::Starting | Truth::Alive, _)) => vec![
                (
                    takes,
                    Happening::Becomes(id.clone(), Truth::Dead, term.clone()),
                ),
                (takes, says(exited(id, term, now + takes))),
            ],
            Some((Truth::Dead, reason)) => vec![(1, says(exited(id, reason.clone(), now)))],
            Some((Truth::Removed, _)) | None => {
                vec![(1, says(exited(id, ExitReason::Lost, now)))]
            }
        }
    }

    fn remove(&mut self, id: &InstanceId, faults: bool, now: u64) -> Vec<Later> {
        let takes = self.random.between(1, 200);
        if let Some(failed) = self.fails(id, faults, now) {
            return failed;
        }
        let removed = Observation::Removed {
            instance: id.clone(),
        };
        vec![
            (
                takes,
                Happening::Becomes(id.clone(), Truth::Removed, ExitReason::Lost),
            ),
            (takes, says(removed)),
        ]
    }

    fn sync(&mut self, faults: bool, now: u64) -> Vec<Later> {
        let takes = self.random.between(1, 50);
        if faults && self.random.percent(5) {
            let problem = "the folder of instances can't be read".to_owned();
            return vec![(takes, says(Observation::SyncFailed { problem }))];
        }
        let stuck = faults && self.random.percent(20);
        let seen = self.made.iter().filter_map(|(instance, made)| {
            let state = match made.truth {
                Truth::Alive => SeenState::Running,
                Truth::Dead => SeenState::Ended(record(made.ended.clone(), now)),
                Truth::Starting | Truth::Removed => return None,
            };
            Some(SeenInstance {
                instance: instance.clone(),
                state,
                problem: stuck.then(|| "something of it can't be removed".to_owned()),
            })
        });
        let instances = seen.collect();
        vec![(takes, says(Observation::Synced { instances }))]
    }
}

fn record(reason: ExitReason, at: u64) -> ExitRecord {
    ExitRecord {
        reason,
        at: Timestamp(at),
        last_lines: vec!["cannot open the configuration".to_owned()],
    }
}

fn started(id: &InstanceId, made: &Made, at: u64) -> Observation {
    Observation::Started {
        instance: id.clone(),
        pid: Some(made.pid),
        endpoint: made.port.map(|port| ([10, 0, 0, 2], port).into()),
        at: Timestamp(at),
    }
}

fn start_failed(id: &InstanceId, failure: StartFailure) -> Observation {
    Observation::StartFailed {
        instance: id.clone(),
        failure,
    }
}

fn exited(id: &InstanceId, reason: ExitReason, at: u64) -> Observation {
    Observation::Exited {
        instance: id.clone(),
        record: record(reason, at),
    }
}
