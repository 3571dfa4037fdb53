//! The simulated engine by itself, for the suite that every engine passes.

use std::collections::BTreeMap;

use kiln_model::{Command, Digest, Observation, Release, Resources, UnknownFields};

use crate::conformance::{Behaviour, Subject};
use crate::engine::{Engine, Happening, Quality};

/// The simulator's engine with a clock of its own, and without bad luck.
pub struct SimulatedEngine {
    engine: Engine,
    now: u64,
    serial: u64,
    next: BTreeMap<(u64, u64), Happening>,
    broken: Option<String>,
}

impl SimulatedEngine {
    pub fn new(seed: u64) -> Self {
        Self {
            engine: Engine::new(seed),
            now: 1,
            serial: 0,
            next: BTreeMap::new(),
            broken: None,
        }
    }

    /// What it could not take at all.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

impl Subject for SimulatedEngine {
    fn release(&self, behaviour: Behaviour) -> Release {
        let quality = match behaviour {
            Behaviour::Serves => Quality::Good,
            Behaviour::Exits => Quality::ExitsAtOnce,
            Behaviour::CannotStart => Quality::CannotStart,
        };
        Release {
            image: Digest::of(b"image"),
            command: vec![quality.word().to_owned()],
            env: BTreeMap::new(),
            user: String::new(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: Some(3000),
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
            unknown: UnknownFields::default(),
        }
    }

    fn send(&mut self, command: Command) {
        match self.engine.take(&command, false, self.now) {
            Ok(later) => {
                for (after, happening) in later {
                    self.serial += 1;
                    self.next.insert((self.now + after, self.serial), happening);
                }
            }
            Err(what) => self.broken = Some(what),
        }
    }

    fn next(&mut self) -> Option<Observation> {
        while let Some(((at, _), happening)) = self.next.pop_first() {
            self.now = self.now.max(at);
            match happening {
                Happening::Says(observation) => return Some(*observation),
                Happening::Becomes(id, truth, reason) => {
                    self.engine.become_true(&id, truth, reason)
                }
            }
        }
        None
    }
}
