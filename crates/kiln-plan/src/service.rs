//! The state machine of one service in one environment.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{
    ActionId, ImageOrigin, InstanceId, Policy, ProjectName, Release, ReleaseId, ReleaseNumber,
    ServiceKey, Strategy, Timestamp, Why,
};
use serde::{Deserialize, Serialize};

use crate::event::{Action, Event, Notice, Refusal, RolloutEnd};
use crate::instance::{Instance, Phase, Routed};
use crate::keeper::Keeper;
use crate::mutation::Mutation;
use crate::observed::Started;
use crate::probation::{PolicyChange, Probes};
use crate::rollout::Rollout;
use crate::traffic::{RouteRefused, RouteWanted};

/// Releases kept in the state besides those in use; older ones are in the journal.
const RELEASES_KEPT: usize = 100;

/// One service in one environment: its releases, its instances, at most one rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub(crate) key: ServiceKey,
    pub(crate) project: ProjectName,
    pub(crate) releases: BTreeMap<ReleaseNumber, ReleaseRecord>,
    pub(crate) policy: Option<Policy>,
    /// The release that has the traffic, or had it last.
    pub(crate) current: Option<ReleaseNumber>,
    /// Releases that were current before, oldest first, the present one left out.
    pub(crate) previous: Vec<ReleaseNumber>,
    pub(crate) warm: Option<Warm>,
    pub(crate) rollout: Option<Rollout>,
    /// A change of the policy alone that is under way; never beside a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) change: Option<PolicyChange>,
    pub(crate) last_rollout: Option<RolloutEnd>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) route: Option<RouteWanted>,
    pub(crate) route_refused: Option<RouteRefused>,
    #[serde(rename = "back_off")]
    pub(crate) keeper: Keeper,
    pub(crate) removing: bool,
    pub(crate) gone: bool,
    pub(crate) outstanding: BTreeMap<ActionId, Action>,
    next_release: ReleaseNumber,
    next_serial: u64,
    next_action: ActionId,
    #[serde(skip)]
    pub(crate) actions: VecDeque<Action>,
    #[serde(skip)]
    pub(crate) notices: VecDeque<Notice>,
    #[cfg(feature = "mutations")]
    #[serde(skip)]
    pub(crate) mutation: Option<Mutation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    pub id: ReleaseId,
    pub release: Release,
    pub origin: ImageOrigin,
    pub created_at: Timestamp,
    /// The probes it was deployed with: they go back with it. `None`: those of the present policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
}

/// The set that is kept running for a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    pub release: ReleaseNumber,
    pub until: Timestamp,
}

impl Service {
    pub fn new(key: ServiceKey, project: ProjectName) -> Self {
        Self {
            key,
            project,
            releases: BTreeMap::new(),
            policy: None,
            current: None,
            previous: Vec::new(),
            warm: None,
            rollout: None,
            change: None,
            last_rollout: None,
            instances: BTreeMap::new(),
            route: None,
            route_refused: None,
            keeper: Keeper::default(),
            removing: false,
            gone: true,
            outstanding: BTreeMap::new(),
            next_release: ReleaseNumber(1),
            next_serial: 1,
            next_action: ActionId(1),
            actions: VecDeque::new(),
            notices: VecDeque::new(),
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }

    pub fn key(&self) -> &ServiceKey {
        &self.key
    }

    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    pub fn releases(&self) -> impl Iterator<Item = (ReleaseNumber, &ReleaseRecord)> {
        self.releases
            .iter()
            .map(|(number, record)| (*number, record))
    }

    pub fn release(&self, number: ReleaseNumber) -> Option<&ReleaseRecord> {
        self.releases.get(&number)
    }

    /// The release that has the traffic; `None` before the first is ready, and after removal.
    pub fn current(&self) -> Option<ReleaseNumber> {
        self.current
    }

    pub fn warm(&self) -> Option<&Warm> {
        self.warm.as_ref()
    }

    pub fn rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
    }

    pub fn last_rollout(&self) -> Option<&RolloutEnd> {
        self.last_rollout.as_ref()
    }

    /// Every instance of which something is left, ordered by id.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// A change of the policy alone that is under way.
    pub fn change(&self) -> Option<&PolicyChange> {
        self.change.as_ref()
    }

    /// The instances that run and were not told to stop.
    pub fn running(&self) -> impl Iterator<Item = &Instance> {
        self.instances
            .values()
            .filter(|instance| instance.phase == Phase::Running)
    }

    pub fn release_of(&self, id: &InstanceId) -> Option<ReleaseNumber> {
        self.instances.get(id).map(|instance| instance.release)
    }

    /// The last route that was decided; `None` before the first.
    pub fn route(&self) -> Option<&RouteWanted> {
        self.route.as_ref()
    }

    /// This planner, made wrong on purpose. The mark is not journalled: set it again after a restart.
    #[cfg(feature = "mutations")]
    pub fn set_mutation(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    #[cfg(feature = "mutations")]
    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    #[cfg(not(feature = "mutations"))]
    pub(crate) fn mutated(&self, _: Mutation) -> bool {
        false
    }

    /// Nothing of it runs and nothing is asked of it.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    pub fn is_removing(&self) -> bool {
        self.removing
    }

    /// Every action without an outcome, oldest first.
    pub fn outstanding(&self) -> Vec<Action> {
        if self.mutated(Mutation::ForgetOutstanding) {
            return Vec::new();
        }
        self.outstanding.values().cloned().collect()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Whether a person's event is taken now. Everything that is simply so is always taken.
    pub fn accepts(&self, event: &Event) -> Result<(), Refusal> {
        match event {
            Event::Deploy { .. } => match &self.rollout {
                Some(rollout) => Err(Refusal::Busy { to: rollout.to }),
                None => Ok(()),
            },
            Event::Rollback { to } => {
                if self.gone || self.removing {
                    return Err(Refusal::Gone);
                }
                self.rollback_target(*to).map(|_| ())
            }
            Event::SetPolicy { .. }
            | Event::Remove
            | Event::Started { .. }
            | Event::StartFailed { .. }
            | Event::Exited { .. }
            | Event::Removed { .. }
            | Event::Probed { .. }
            | Event::Confirmed { .. }
            | Event::RouteRefused { .. }
            | Event::Drained { .. }
            | Event::Timer => Ok(()),
        }
    }

    /// Where a rollback goes.
    fn rollback_target(&self, to: Option<ReleaseNumber>) -> Result<ReleaseNumber, Refusal> {
        if let Some(rollout) = &self.rollout {
            let from = rollout.from.ok_or(Refusal::NoPrevious)?;
            return match to {
                Some(number) if number != from => Err(Refusal::Busy { to: rollout.to }),
                Some(_) | None => Ok(from),
            };
        }
        let target = match to {
            Some(number) => number,
            None => *self
                .previous
                .iter()
                .rev()
                .find(|number| Some(**number) != self.current)
                .ok_or(Refusal::NoPrevious)?,
        };
        if !self.releases.contains_key(&target) {
            return Err(Refusal::UnknownRelease { number: target });
        }
        if self.current == Some(target) {
            return Err(Refusal::AlreadyCurrent { number: target });
        }
        Ok(target)
    }

    /// One step. `now` never decreases.
    pub fn handle_event(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Deploy {
                release,
                origin,
                policy,
            } => self.deploy(now, *release, origin, policy),
            Event::SetPolicy { policy } => self.set_policy(now, policy),
            Event::Rollback { to } => self.roll_back(now, to),
            Event::Remove => self.remove(),
            Event::Started {
                instance,
                pid,
                endpoint,
                at,
            } => self.started(now, &instance, Started { pid, endpoint, at }),
            Event::StartFailed { instance, failure } => self.start_failed(now, &instance, failure),
            Event::Exited { instance, record } => self.exited(now, &instance, record),
            Event::Removed { instance } => self.removed(&instance),
            Event::Probed {
                instance,
                probe,
                passes,
            } => self.probed(now, &instance, probe, passes),
            Event::Confirmed { generation } => self.confirmed(now, generation),
            Event::RouteRefused { generation, reason } => {
                self.route_refused(now, generation, reason);
            }
            Event::Drained { instance, cut: _ } => self.drained(&instance),
            Event::Timer => {}
        }
        self.reconcile(now);
    }

    fn deploy(&mut self, now: Timestamp, release: Release, origin: ImageOrigin, policy: Policy) {
        if self.rollout.is_some() {
            return;
        }
        let Ok(id) = release.id() else { return };
        self.give_up_change(Why::Superseded);
        self.removing = false;
        self.gone = false;
        let known = self
            .releases
            .iter()
            .find(|(_, record)| record.id == id)
            .map(|(n, _)| *n);
        let to = match known {
            Some(number) => {
                // The same release from another commit: say where it came from last.
                if let Some(record) = self.releases.get_mut(&number) {
                    record.origin = origin;
                }
                number
            }
            None => {
                let number = self.next_release;
                self.next_release = number.next();
                self.releases.insert(
                    number,
                    ReleaseRecord {
                        id,
                        release,
                        origin,
                        created_at: now,
                        probes: None,
                    },
                );
                number
            }
        };
        if self.current == Some(to) {
            self.set_policy(now, policy);
            return;
        }
        self.remember_probes(to, &policy);
        let before = self.policy.replace(policy);
        self.begin_rollout(now, to, before);
    }

    fn roll_back(&mut self, now: Timestamp, to: Option<ReleaseNumber>) {
        let Ok(target) = self.rollback_target(to) else {
            return;
        };
        if self.rollout.is_some() {
            self.turn_back(now, Why::Asked);
            return;
        }
        self.give_up_change(Why::Superseded);
        // Its probes go back with a release: those of a later one may ask for what it does not have.
        let Probes { ready, live } = self.probes_of(target);
        let before = self.policy.clone();
        if let Some(policy) = &mut self.policy {
            policy.ready = ready;
            policy.live = live;
        }
        self.begin_rollout(now, target, before);
    }

    fn remove(&mut self) {
        if self.gone {
            self.notices.push_back(Notice::Gone);
            return;
        }
        self.give_up_change(Why::Superseded);
        self.removing = true;
        self.warm = None;
        if let Some(rollout) = self.rollout.take() {
            self.end_rollout(rollout, RolloutResult::Removed, None);
        }
    }

    pub(crate) fn end_rollout(
        &mut self,
        rollout: Rollout,
        result: RolloutResult,
        why: Option<Why>,
    ) {
        let end = RolloutEnd {
            from: rollout.from,
            to: rollout.to,
            result,
            why,
        };
        self.last_rollout = Some(end.clone());
        self.notices.push_back(Notice::RolloutEnded { end });
    }

    pub(crate) fn next_release(&self) -> ReleaseNumber {
        self.next_release
    }

    pub(crate) fn next_action(&mut self) -> ActionId {
        let id = self.next_action;
        self.next_action = id.next();
        id
    }

    pub(crate) fn issue(&mut self, action: Action) {
        let id = match &action {
            Action::Start { id, .. }
            | Action::Stop { id, .. }
            | Action::Remove { id, .. }
            | Action::Route { id, .. } => *id,
        };
        self.outstanding.insert(id, action.clone());
        self.actions.push_back(action);
    }

    pub(crate) fn start_instance(&mut self, now: Timestamp, release: ReleaseNumber) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let id = InstanceId::of(&self.key, release, serial);
        self.instances.insert(
            id.clone(),
            Instance {
                id: id.clone(),
                release,
                phase: Phase::Starting,
                routed: Routed::Never,
                ready: false,
                ready_since: None,
                doomed: false,
                lived: false,
                endpoint: None,
                pid: None,
                started_at: None,
                asked_at: now,
            },
        );
        let action = self.next_action();
        self.issue(Action::Start {
            id: action,
            instance: id,
            release,
        });
    }

    pub(crate) fn keep_warm(&self) -> Duration {
        match self.policy.as_ref().map(|policy| &policy.strategy) {
            Some(Strategy::BlueGreen(strategy)) => strategy.keep_warm,
            None => Duration::ZERO,
        }
    }

    /// Forgets old releases that nothing refers to.
    pub(crate) fn forget_old_releases(&mut self) {
        if self.previous.len() > RELEASES_KEPT {
            self.previous.drain(..self.previous.len() - RELEASES_KEPT);
        }
        while self.releases.len() > RELEASES_KEPT {
            let used = |number: &ReleaseNumber| {
                self.current == Some(*number)
                    || self.previous.last() == Some(number)
                    || self
                        .warm
                        .as_ref()
                        .is_some_and(|warm| warm.release == *number)
                    || self
                        .instances
                        .values()
                        .any(|instance| instance.release == *number)
            };
            let Some(oldest) = self.releases.keys().copied().find(|number| !used(number)) else {
                return;
            };
            self.releases.remove(&oldest);
            self.keeper.forget_failures(oldest);
            self.previous.retain(|number| *number != oldest);
        }
    }
}
