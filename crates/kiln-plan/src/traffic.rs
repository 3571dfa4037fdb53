//! Which share of the traffic each set should have, the routes that say so, and what proxies made of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kiln_model::{Generation, InstanceId, ReleaseNumber, Timestamp, Why, duration_ms};
use serde::{Deserialize, Serialize};

use crate::event::{Action, Notice};
use crate::instance::{Phase, Routed};
use crate::keeper::wait_after;
use crate::mutation::Mutation;
use crate::service::Service;
use crate::stage::{Gate, Share};

/// How long after the drain deadline a proxy may take to say that it has cut what was left.
pub(crate) const DRAIN_MARGIN: Duration = Duration::from_secs(2);

/// The last routes that were decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteWanted {
    pub generation: Generation,
    /// Ordered by release. Empty: nobody serves.
    pub sets: Vec<RoutedSet>,
    pub draining: Vec<InstanceId>,
    /// The host's side of the service while something serves it.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// What the requests in flight of those that drain have.
    #[serde(with = "duration_ms", default)]
    pub drain_deadline: Duration,
    /// Every live proxy serves it.
    pub confirmed: bool,
}

/// The instances of one release that get traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedSet {
    pub release: ReleaseNumber,
    /// Of the service's traffic. All sets together have the whole.
    pub share: Share,
    /// Ordered by id.
    pub instances: Vec<InstanceId>,
}

/// A proxy refused the last route. Until one is confirmed, it is given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteRefused {
    /// In a row.
    pub(crate) refusals: u32,
    pub(crate) reason: String,
    /// When it is given again, as a new generation; `None`: it was.
    pub(crate) again: Option<Timestamp>,
}

impl RouteWanted {
    pub fn routes_to(&self, instance: &InstanceId) -> bool {
        self.sets.iter().any(|set| set.instances.contains(instance))
    }

    /// The release that has all the traffic, or most of it.
    pub fn main_release(&self) -> Option<ReleaseNumber> {
        let main = self.sets.iter().max_by_key(|set| set.share);
        main.map(|set| set.release)
    }
}

impl Service {
    /// The releases that should have traffic, ordered, with their shares.
    pub(crate) fn traffic(&self) -> Vec<(ReleaseNumber, Share)> {
        if self.removing {
            return Vec::new();
        }
        let mut shares: Vec<_> = match &self.rollout {
            None => self
                .current
                .map(|current| (current, Share::ALL))
                .into_iter()
                .collect(),
            Some(rollout) => {
                let stays = rollout.is_going_back() && self.mutated(Mutation::NeverReturn);
                let to = if stays { Share::ALL } else { rollout.traffic() };
                let from = rollout.from.map(|from| (from, to.rest()));
                let shares = from.into_iter().chain([(rollout.to, to)]);
                shares.filter(|(_, share)| *share > Share::NONE).collect()
            }
        };
        shares.sort_unstable();
        shares
    }

    /// Where clients are let in by the routes. While the first release starts they wait; when it failed and nothing will
    /// serve, they are refused rather than kept waiting.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        let serves = self.current.is_some() || self.rollout.is_some();
        self.serving_policy()
            .and_then(|policy| policy.listen)
            .filter(|_| serves && !self.removing)
    }

    /// Every address that clients reach the service at now, or will when what is under way goes on.
    pub fn listens(&self) -> BTreeSet<SocketAddr> {
        if self.gone || self.removing {
            return BTreeSet::new();
        }
        let serves = self.current.is_some() || self.rollout.is_some();
        let change = self.change.as_ref().map(|change| &change.policy);
        let policies = [self.serving_policy(), self.policy.as_ref(), change];
        let listens = policies
            .into_iter()
            .flatten()
            .filter_map(|policy| policy.listen);
        listens.filter(|_| serves).collect()
    }

    pub(crate) fn reroute(&mut self, now: Timestamp) {
        let traffic = self.traffic();
        let sets: Vec<_> = traffic
            .into_iter()
            .map(|(release, share)| RoutedSet {
                release,
                share,
                instances: self.backends(release),
            })
            .collect();
        let listen = self.listen();
        let drain_deadline = self
            .serving_policy()
            .map_or(Duration::ZERO, |policy| policy.drain_deadline);
        let same = match &self.route {
            None => sets.is_empty(),
            Some(route) => {
                let forgets = self.mutated(Mutation::ForgetListen);
                let drains = self.instances.values().any(|i| i.is_draining());
                route.sets == sets
                    && (route.listen == listen || forgets)
                    && (route.drain_deadline == drain_deadline || !drains)
            }
        };
        let again = self
            .route_refused
            .as_ref()
            .and_then(|refused| refused.again)
            .is_some_and(|again| now >= again);
        if same && !again {
            return;
        }
        if let Some(refused) = &mut self.route_refused {
            refused.again = None;
        }
        let generation = self
            .route
            .as_ref()
            .map_or(Generation(1), |route| route.generation.next());
        let chosen: BTreeSet<_> = sets.iter().flat_map(|set| &set.instances).collect();
        for instance in self.instances.values_mut() {
            if chosen.contains(&instance.id) {
                instance.routed = Routed::Active;
            } else if instance.routed == Routed::Active {
                instance.routed = if instance.phase == Phase::Ended {
                    Routed::Drained
                } else {
                    Routed::Leaving { generation }
                };
            }
        }
        let draining: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.is_draining())
            .map(|instance| instance.id.clone())
            .collect();
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        self.route = Some(RouteWanted {
            generation,
            sets: sets.clone(),
            draining: draining.clone(),
            listen,
            drain_deadline,
            confirmed: false,
        });
        let id = self.next_action();
        self.issue(Action::Route {
            id,
            generation,
            sets,
            draining,
        });
    }

    /// The instances of `release` that get traffic: the ready ones that stay. When none is ready, those that had it go
    /// on (fail open): the proxy picks the least bad.
    fn backends(&self, release: ReleaseNumber) -> Vec<InstanceId> {
        let kept = self.kept(release);
        let ready: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.is_ready() && kept.contains(&instance.id))
            .map(|instance| instance.id.clone())
            .collect();
        if !ready.is_empty() {
            return ready;
        }
        self.instances
            .values()
            .filter(|instance| {
                instance.release == release
                    && instance.phase == Phase::Running
                    && instance.routed == Routed::Active
                    && (kept.contains(&instance.id) || instance.doomed && self.wanted(release) > 0)
            })
            .map(|instance| instance.id.clone())
            .collect()
    }

    pub(crate) fn confirmed(&mut self, now: Timestamp, generation: Generation) {
        let Some(route) = &mut self.route else { return };
        if route.generation != generation {
            return;
        }
        route.confirmed = true;
        let drains = route.drain_deadline;
        self.route_refused = None;
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        for instance in self.instances.values_mut() {
            if let Routed::Leaving { generation } = instance.routed {
                // The proxy cuts what is left at the deadline and says so; this is for a proxy that can't.
                let deadline = now.plus(drains).plus(DRAIN_MARGIN);
                instance.routed = Routed::Draining {
                    generation,
                    deadline,
                };
            }
        }
    }

    /// The switch is given up. Any other route is needed whatever a proxy says of it: for the way back, to get a dead
    /// instance out, to remove the service. It is given again until it is taken.
    pub(crate) fn route_refused(&mut self, now: Timestamp, generation: Generation, reason: String) {
        let Some(route) = &self.route else { return };
        if route.generation != generation || route.confirmed {
            return;
        }
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        let before = self.route_refused.as_ref();
        let refusals = before
            .map_or(0, |refused| refused.refusals)
            .saturating_add(1);
        self.route_refused = Some(RouteRefused {
            refusals,
            reason: reason.clone(),
            again: Some(now.plus(wait_after(refusals))),
        });
        self.notices.push_back(Notice::RouteRefused {
            reason: reason.clone(),
        });
        let gate = self
            .rollout
            .as_ref()
            .and_then(|rollout| rollout.present_gate());
        if gate == Some(&Gate::Routed) {
            self.turn_back(now, Why::RouteRefused { detail: reason });
        }
    }

    pub(crate) fn end_drains(&mut self, now: Timestamp) {
        for instance in self.instances.values_mut() {
            match instance.routed {
                Routed::Draining { deadline, .. } if now >= deadline => {
                    instance.routed = Routed::Drained;
                }
                Routed::Leaving { .. } | Routed::Draining { .. }
                    if instance.phase == Phase::Ended =>
                {
                    instance.routed = Routed::Drained;
                }
                Routed::Never
                | Routed::Active
                | Routed::Leaving { .. }
                | Routed::Draining { .. }
                | Routed::Drained => {}
            }
        }
    }

    /// Nothing of the instance is in flight in any proxy.
    pub(crate) fn drained(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id)
            && matches!(instance.routed, Routed::Draining { .. })
        {
            // Said of one that is `Leaving`, it is about the time before it was last routed to.
            instance.routed = Routed::Drained;
        }
    }
}
