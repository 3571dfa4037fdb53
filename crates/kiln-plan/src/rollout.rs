//! Going from one release to the next: the interpreter that walks a row of stages.

use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{Policy, ReleaseNumber, RolloutPhase, Timestamp, Unready, Why};
use serde::{Deserialize, Serialize};

use crate::event::Notice;
use crate::instance::{Instance, Phase, Routed};
use crate::mutation::Mutation;
use crate::service::{Service, Warm};
use crate::stage::{Gate, Share, Stage, compile};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// `None`: the first release of the service.
    pub from: Option<ReleaseNumber>,
    pub to: ReleaseNumber,
    /// The policy that the service goes back to together with `from`; `None`: there is nothing to go back to.
    pub from_policy: Option<Policy>,
    pub stages: Vec<Stage>,
    /// The stage it is in, by its place in `stages`.
    pub stage: usize,
    /// The gate that has to open next, by its place in the stage.
    pub gate: usize,
    pub direction: Direction,
    /// When the gate began to be waited for, or the way back.
    pub since: Timestamp,
    /// When waiting for the gate ends: it opens by then, or the rollout fails.
    pub deadline: Option<Timestamp>,
    /// Instances of the new set that ended before it had traffic.
    pub exits: u32,
    /// The set was warm, complete and ready when the rollout began.
    pub warm: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Direction {
    Forward,
    /// Traffic goes back to where the rollout came from, then the new set ends.
    Back {
        why: Why,
    },
}

/// Whether a gate lets the rollout on.
enum Verdict {
    Open,
    Shut,
    Failed(Why),
}

impl Rollout {
    pub fn is_going_back(&self) -> bool {
        matches!(self.direction, Direction::Back { .. })
    }

    /// The stage it is in, while it goes forward.
    pub fn present(&self) -> Option<&Stage> {
        match self.direction {
            Direction::Forward => self.stages.get(self.stage),
            Direction::Back { .. } => None,
        }
    }

    /// The share of the traffic that the new set should have now.
    pub fn traffic(&self) -> Share {
        self.present().map_or(Share::NONE, |stage| stage.traffic)
    }

    /// The gate that has to open next, while it goes forward.
    pub fn present_gate(&self) -> Option<&Gate> {
        self.present()?.gates.get(self.gate)
    }

    pub fn phase(&self) -> RolloutPhase {
        match self.present_gate() {
            Some(Gate::Soaked { .. }) => RolloutPhase::Start,
            Some(Gate::Routed) => RolloutPhase::Switch,
            Some(Gate::Watched { .. }) => RolloutPhase::Watch,
            None => RolloutPhase::Return,
        }
    }

    /// The gate is waited for from now on.
    fn enter(&mut self, now: Timestamp) {
        self.since = now;
        self.deadline = match self.present_gate() {
            Some(Gate::Soaked { within, .. }) => Some(now.plus(*within)),
            Some(Gate::Watched { span, .. }) => Some(now.plus(*span)),
            Some(Gate::Routed) | None => None,
        };
    }

    /// The next gate, or the first of the next stage; false where there is none.
    fn advance(&mut self, now: Timestamp) -> bool {
        self.gate += 1;
        while let Some(stage) = self.stages.get(self.stage) {
            if self.gate < stage.gates.len() {
                self.enter(now);
                return true;
            }
            self.stage += 1;
            self.gate = 0;
        }
        false
    }

    /// Takes the times of another policy, in place.
    pub(crate) fn recompile(&mut self, policy: &Policy) {
        self.stages = compile(policy, self.warm);
        if let Some(Gate::Watched { span, .. }) = self.present_gate() {
            let watched = self.since.plus(*span);
            self.deadline = self.deadline.map(|deadline| deadline.min(watched));
        }
    }
}

impl Service {
    pub(crate) fn begin_rollout(
        &mut self,
        now: Timestamp,
        to: ReleaseNumber,
        from_policy: Option<Policy>,
    ) {
        let Some(policy) = &self.policy else { return };
        let kept_warm = self.warm.take_if(|warm| warm.release == to).is_some();
        let complete = self.sound(to) >= policy.replicas as usize;
        let warm = kept_warm && complete;
        self.keeper.forget_failures(to);
        let mut rollout = Rollout {
            from: self.current,
            to,
            from_policy: from_policy.filter(|_| self.current.is_some()),
            stages: compile(policy, warm),
            stage: 0,
            gate: 0,
            direction: Direction::Forward,
            since: now,
            deadline: None,
            exits: 0,
            warm,
        };
        rollout.enter(now);
        self.rollout = Some(rollout);
        self.notices.push_back(Notice::RolloutBegan {
            from: self.current,
            to,
        });
        self.tell_wait();
    }

    /// True when the rollout went on or ended.
    pub(crate) fn advance_rollout(&mut self, now: Timestamp) -> bool {
        let Some(rollout) = self.rollout.clone() else {
            return false;
        };
        if rollout.is_going_back() {
            return self.advance_back(rollout);
        }
        let Some(gate) = rollout.present_gate() else {
            self.done(now);
            return true;
        };
        let verdict = match gate {
            Gate::Soaked { soak, within } => self.soaked(now, &rollout, *soak, *within),
            Gate::Routed => self.routed(&rollout),
            Gate::Watched { within, .. } => self.watched(now, &rollout, *within),
        };
        match verdict {
            Verdict::Shut => false,
            Verdict::Open => {
                self.pass_gate(now);
                true
            }
            Verdict::Failed(why) => {
                self.turn_back(now, why);
                true
            }
        }
    }

    fn pass_gate(&mut self, now: Timestamp) {
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        if rollout.advance(now) {
            self.tell_wait();
        } else {
            self.done(now);
        }
    }

    /// As many as the stage wants have been ready for `soak` without a break.
    fn soaked(
        &self,
        now: Timestamp,
        rollout: &Rollout,
        soak: Duration,
        within: Duration,
    ) -> Verdict {
        let to = rollout.to;
        if self.mutated(Mutation::WaitForOldSet)
            && rollout
                .from
                .is_some_and(|from| self.ready(from) < self.wanted(from) as usize)
        {
            return Verdict::Shut;
        }
        if self.mutated(Mutation::SwitchBeforeReady)
            && self.running().any(|instance| instance.release == to)
        {
            return Verdict::Open;
        }
        let soaked = self.soaked_instances(now, to, soak);
        if soaked >= self.wanted(to) as usize {
            return Verdict::Open;
        }
        let late = rollout.deadline.is_some_and(|deadline| now >= deadline);
        if late && !self.mutated(Mutation::NoDeadline) {
            return Verdict::Failed(Why::NotReady {
                release: to,
                within,
                unready: self.unready(to),
            });
        }
        Verdict::Shut
    }

    /// Every proxy serves the traffic of the stage.
    fn routed(&mut self, rollout: &Rollout) -> Verdict {
        let wanted = self.traffic();
        let Some(route) = self.route.as_ref().filter(|route| {
            let given = route.sets.iter().map(|set| (set.release, set.share));
            route.confirmed && given.eq(wanted.iter().copied())
        }) else {
            return Verdict::Shut;
        };
        if rollout.traffic() == Share::ALL {
            let to = route.sets.iter().find(|set| set.release == rollout.to);
            let instances = to.map_or(0, |set| set.instances.len());
            self.notices.push_back(Notice::Switched {
                to: rollout.to,
                instances: u32::try_from(instances).unwrap_or(u32::MAX),
            });
        }
        Verdict::Open
    }

    fn watched(&mut self, now: Timestamp, rollout: &Rollout, within: Duration) -> Verdict {
        let to = rollout.to;
        // Those that were never routed were asked for after the switch (the service is being scaled up) and say nothing
        // about the release.
        let failing = self.running().any(|instance| {
            instance.release == to
                && instance.routed != Routed::Never
                && (!instance.ready || instance.doomed)
        });
        if rollout.from.is_some() && failing {
            return Verdict::Failed(Why::LostReadiness {
                release: to,
                unready: self.unready(to),
            });
        }
        if rollout.deadline.is_some_and(|deadline| now < deadline) {
            return Verdict::Shut;
        }
        // A policy that changed meanwhile may have changed the routes: the confirmation is the next to be heard of.
        let listen = self.listen();
        let route = self.route.as_ref();
        if route.is_some_and(|route| !route.confirmed || route.listen != listen) {
            if let Some(rollout) = &mut self.rollout {
                rollout.deadline = None;
            }
            return Verdict::Shut;
        }
        if self.ready(to) >= self.wanted(to) as usize {
            return Verdict::Open;
        }
        // After a reboot, or while it is scaled up: it has as long as any new set to be complete.
        let last = self.watch_ends(rollout, within);
        if now < last {
            if let Some(rollout) = &mut self.rollout {
                rollout.deadline = Some(last);
            }
            return Verdict::Shut;
        }
        if rollout.from.is_some() {
            return Verdict::Failed(Why::Incomplete {
                release: to,
                unready: self.unready(to),
            });
        }
        Verdict::Open
    }

    fn watch_ends(&self, rollout: &Rollout, within: Duration) -> Timestamp {
        let soak = self.policy.as_ref().map_or(Duration::ZERO, |p| p.soak);
        rollout.since.plus(soak).plus(within)
    }

    /// Traffic goes back to where the rollout came from.
    pub(crate) fn turn_back(&mut self, now: Timestamp, why: Why) {
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        if rollout.is_going_back() {
            return;
        }
        rollout.direction = Direction::Back { why };
        rollout.since = now;
        rollout.deadline = None;
        self.tell_wait();
    }

    fn advance_back(&mut self, rollout: Rollout) -> bool {
        let back = self.route.as_ref().is_none_or(|route| {
            let mut given = route.sets.iter().map(|set| set.release);
            route.confirmed && given.next() == rollout.from && given.next().is_none()
        });
        let left = self
            .instances
            .values()
            .any(|instance| instance.release == rollout.to && instance.phase != Phase::Ended);
        if !back || left {
            return false;
        }
        self.rollout = None;
        let why = match &rollout.direction {
            Direction::Back { why } => Some(why.clone()),
            Direction::Forward => None,
        };
        // What is turned back is the release and its policy together.
        if let Some(policy) = &rollout.from_policy
            && !self.mutated(Mutation::KeepNewPolicy)
        {
            self.policy = Some(policy.clone());
        }
        let result = match rollout.from {
            Some(_) => RolloutResult::RolledBack,
            None => {
                self.current = None;
                RolloutResult::Failed
            }
        };
        self.end_rollout(rollout, result, why);
        true
    }

    /// All traffic is with the new set, and it held.
    fn done(&mut self, now: Timestamp) {
        let Some(rollout) = self.rollout.take() else {
            return;
        };
        if let Some(from) = rollout.from {
            self.previous
                .retain(|number| *number != from && *number != rollout.to);
            self.previous.push(from);
            if let Some(warm) = self.warm.take() {
                self.notices.push_back(Notice::WarmRetired {
                    release: warm.release,
                });
            }
            let keep = self.keep_warm();
            if !keep.is_zero() {
                let until = now.plus(keep);
                self.warm = Some(Warm {
                    release: from,
                    until,
                });
                self.notices.push_back(Notice::WarmUntil {
                    release: from,
                    until,
                });
            }
        }
        self.current = Some(rollout.to);
        self.forget_old_releases();
        self.end_rollout(rollout, RolloutResult::Done, None);
    }

    /// The instances of `release` that are ready, and not to be replaced.
    pub(crate) fn ready(&self, release: ReleaseNumber) -> usize {
        self.of_release(release)
            .filter(|instance| instance.is_ready() && !instance.doomed)
            .count()
    }

    /// The instances of `release` that a switch may rely on: ready, and with a live probe that has passed.
    pub(crate) fn sound(&self, release: ReleaseNumber) -> usize {
        self.of_release(release)
            .filter(|instance| self.is_sound(instance))
            .count()
    }

    /// Ready, and every probe that its policy has was seen to pass.
    pub(crate) fn is_sound(&self, instance: &Instance) -> bool {
        let lives = instance.lived || self.probes_of(instance.release).live.is_none();
        instance.is_ready() && !instance.doomed && lives
    }

    pub(crate) fn soaked_instances(
        &self,
        now: Timestamp,
        release: ReleaseNumber,
        soak: Duration,
    ) -> usize {
        self.of_release(release)
            .filter(|instance| {
                self.is_sound(instance)
                    && instance
                        .ready_since
                        .is_some_and(|since| now.since(since) >= soak)
            })
            .count()
    }

    fn of_release(&self, release: ReleaseNumber) -> impl Iterator<Item = &Instance> {
        self.instances
            .values()
            .filter(move |instance| instance.release == release)
    }

    /// What keeps the set from being ready.
    pub(crate) fn unready(&self, release: ReleaseNumber) -> Unready {
        let count = |wanted: &dyn Fn(&Instance) -> bool| {
            let count = self.of_release(release).filter(|i| wanted(i)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let starting = count(&|i| i.phase == Phase::Starting);
        let unready = count(&|i| i.phase == Phase::Running && !i.ready);
        let lifeless = count(&|i| i.is_ready() && !self.is_sound(i));
        let probes = self.probes_of(release);
        if unready > 0 {
            return Unready::NotPassing {
                count: unready,
                probe: probes.ready_question(),
            };
        }
        match (starting, probes.live_question()) {
            (0, Some(probe)) if lifeless > 0 => Unready::NotPassing {
                count: lifeless,
                probe,
            },
            (0, _) if self.ready(release) > 0 => Unready::NotSoaked,
            (0, _) => Unready::Ended,
            (count, _) => Unready::Starting { count },
        }
    }
}
