//! A world of one service that does as it is told: it answers every action with its outcome, unless the script says
//! otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kiln_model::{
    BlueGreen, Digest, EnvName, ExitReason, ExitRecord, ImageOrigin, InstanceId, Policy,
    ProjectName, Release, ReleaseNumber, Resources, ServiceKey, ServiceName, StartFailure,
    Strategy, Timestamp, UnknownFields,
};
use kiln_plan::{Action, Event, Notice, ProbeKind, RolloutEnd, Routed, Service};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const SOAK: Duration = Duration::from_secs(2);
pub(crate) const PROGRESS: Duration = Duration::from_secs(30);
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
pub(crate) const WARM: Duration = Duration::from_secs(600);

pub(crate) struct Script {
    pub(crate) service: Service,
    pub(crate) now: Timestamp,
    /// A started instance becomes ready at once.
    pub(crate) ready: bool,
    /// Every start fails in this way.
    pub(crate) fails: Option<StartFailure>,
    /// Starts are answered.
    pub(crate) starts: bool,
    /// Every started instance exits at once.
    pub(crate) exits: bool,
    /// Proxies confirm routes.
    pub(crate) confirms: bool,
    /// Nothing is in flight in what leaves the routes.
    pub(crate) drains: bool,
    /// Every action ever, in order.
    pub(crate) actions: Vec<Action>,
    pub(crate) notices: Vec<Notice>,
    pending: VecDeque<Action>,
}

pub(crate) fn key() -> ServiceKey {
    ServiceKey {
        environment: "dev".parse::<EnvName>().expect("a name"),
        service: "api".parse::<ServiceName>().expect("a name"),
    }
}

pub(crate) fn project() -> ProjectName {
    "shop".parse().expect("a name")
}

pub(crate) fn policy(replicas: u32) -> Policy {
    Policy {
        replicas,
        strategy: Strategy::BlueGreen(BlueGreen { keep_warm: WARM }),
        ready: None,
        live: None,
        progress_deadline: PROGRESS,
        soak: SOAK,
        drain_deadline: DRAIN,
        stop_grace: Duration::from_secs(5),
        listen: None,
        unknown: UnknownFields::default(),
    }
}

pub(crate) fn cold(replicas: u32) -> Policy {
    Policy {
        strategy: Strategy::BlueGreen(BlueGreen {
            keep_warm: Duration::ZERO,
        }),
        ..policy(replicas)
    }
}

pub(crate) fn release(version: u8) -> Release {
    Release {
        image: Digest::from_sha256([version; 32]),
        command: vec!["/api".to_owned()],
        env: BTreeMap::from([("VERSION".to_owned(), version.to_string())]),
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

pub(crate) fn origin(version: u8) -> ImageOrigin {
    ImageOrigin {
        tag: format!("api:{version}"),
        digest: Digest::from_sha256([version; 32]),
        commit: None,
        dirty: false,
        baked_at: Timestamp(0),
    }
}

pub(crate) fn deploy(version: u8, policy: Policy) -> Event {
    Event::Deploy {
        release: Box::new(release(version)),
        origin: origin(version),
        policy,
    }
}

pub(crate) const ROLLBACK: Event = Event::Rollback { to: None };

impl Script {
    pub(crate) fn new() -> Self {
        Self {
            service: Service::new(key(), project()),
            now: Timestamp(1_000_000),
            ready: true,
            fails: None,
            starts: true,
            exits: false,
            confirms: true,
            drains: true,
            actions: Vec::new(),
            notices: Vec::new(),
            pending: VecDeque::new(),
        }
    }

    /// A service whose release `version` has all traffic, on instances that have been ready for a while.
    pub(crate) fn serving(version: u8, policy: Policy) -> Self {
        let mut script = Self::new();
        script.roll_out(version, policy);
        script
    }

    /// Deploys and waits for the end, which has to be a good one.
    pub(crate) fn roll_out(&mut self, version: u8, policy: Policy) {
        self.tell(deploy(version, policy));
        self.wait(SOAK * 2 + DRAIN);
        assert!(self.service.rollout().is_none(), "{:?}", self.notices);
        let current = self.service.current().expect("a current release");
        let record = self.service.release(current).expect("its record");
        assert_eq!(record.release, release(version), "{:?}", self.notices);
    }

    /// One step, without any answer: what it decided.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Action> {
        self.service.handle_event(self.now, event);
        let actions: Vec<_> = std::iter::from_fn(|| self.service.poll_action()).collect();
        self.notices
            .extend(std::iter::from_fn(|| self.service.poll_notice()));
        self.pending.extend(actions.iter().cloned());
        self.actions.extend(actions.iter().cloned());
        actions
    }

    /// A step and everything that follows from it now.
    pub(crate) fn tell(&mut self, event: Event) -> Vec<Action> {
        let first = self.actions.len();
        self.step(event);
        self.answer();
        self.actions[first..].to_vec()
    }

    /// Answers one thing that was asked, or else lets time pass until something happens.
    pub(crate) fn wait_one_step(&mut self) {
        if let Some(action) = self.pending.pop_front() {
            self.answer_one(action);
        } else if let Some(at) = self.service.poll_timeout() {
            self.now = self.now.max(at);
            self.step(Event::Timer);
        }
    }

    /// Answers what was asked until nothing is.
    pub(crate) fn answer(&mut self) {
        while let Some(action) = self.pending.pop_front() {
            self.answer_one(action);
        }
    }

    fn answer_one(&mut self, action: Action) {
        match action {
            Action::Start { instance, .. } => self.start(instance),
            Action::Stop { instance, .. } => {
                self.step(exited(&instance, ExitReason::Signalled { signal: 15 }));
            }
            Action::Remove { instance, .. } => {
                self.step(Event::Removed { instance });
            }
            Action::Route { generation, .. } if self.confirms => {
                self.step(Event::Confirmed { generation });
                self.drain();
            }
            Action::Route { .. } => {}
        }
    }

    fn start(&mut self, instance: InstanceId) {
        if let Some(failure) = self.fails.clone() {
            self.step(Event::StartFailed { instance, failure });
            return;
        }
        if !self.starts {
            return;
        }
        self.step(Event::Started {
            instance: instance.clone(),
            pid: Some(100),
            endpoint: Some(([10, 0, 0, 2], 3000).into()),
            at: self.now,
        });
        if self.exits {
            self.step(exited(&instance, ExitReason::Exited { code: 3 }));
        } else if self.ready {
            self.step(probed(instance.clone(), ProbeKind::Live, true));
            self.step(passes(instance));
        }
    }

    fn drain(&mut self) {
        if !self.drains {
            return;
        }
        let draining: Vec<_> = self
            .service
            .instances()
            .filter(|instance| matches!(instance.routed, Routed::Draining { .. }))
            .map(|instance| instance.id.clone())
            .collect();
        for instance in draining {
            self.step(Event::Drained { instance, cut: 0 });
        }
    }

    /// Time passes; the service is called whenever it asked to be.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<Action> {
        let first = self.actions.len();
        let end = self.now.plus(time);
        for _ in 0..1_000 {
            let Some(at) = self.service.poll_timeout().filter(|at| *at <= end) else {
                self.now = end;
                return self.actions[first..].to_vec();
            };
            self.now = self.now.max(at);
            self.tell(Event::Timer);
        }
        panic!(
            "the service asks to be called again and again at {:?}",
            self.now
        );
    }

    /// The running instances of a release, by id.
    pub(crate) fn running(&self, release: u64) -> Vec<InstanceId> {
        self.service
            .running()
            .filter(|instance| instance.release == ReleaseNumber(release))
            .map(|instance| instance.id.clone())
            .collect()
    }

    /// The release that the last decided route gives the traffic to, and to how many instances.
    pub(crate) fn traffic(&self) -> Option<(u64, usize)> {
        let set = self.service.route()?.sets.first()?;
        Some((set.release.0, set.instances.len()))
    }

    pub(crate) fn ends(&self) -> Vec<&RolloutEnd> {
        self.notices
            .iter()
            .filter_map(|notice| match notice {
                Notice::RolloutEnded { end } => Some(end),
                _ => None,
            })
            .collect()
    }

    /// The controller is killed: what it knew is what it wrote.
    pub(crate) fn restart(&mut self) {
        let bytes = serde_json::to_vec(&self.service).expect("a state can be written");
        self.service = serde_json::from_slice(&bytes).expect("a written state can be read");
        self.pending = self.service.outstanding().into();
    }
}

fn probed(instance: InstanceId, probe: ProbeKind, passes: bool) -> Event {
    Event::Probed {
        instance,
        probe,
        passes,
    }
}

/// Its ready probe passes from now on.
pub(crate) fn passes(instance: InstanceId) -> Event {
    probed(instance, ProbeKind::Ready, true)
}

/// Its ready probe passes no longer.
pub(crate) fn fails(instance: InstanceId) -> Event {
    probed(instance, ProbeKind::Ready, false)
}

/// Its live probe passes no longer.
pub(crate) fn dies(instance: InstanceId) -> Event {
    probed(instance, ProbeKind::Live, false)
}

pub(crate) fn exited(instance: &InstanceId, reason: ExitReason) -> Event {
    Event::Exited {
        instance: instance.clone(),
        record: ExitRecord {
            reason,
            at: Timestamp(0),
            last_lines: vec![
                "reading /etc/api.toml".to_owned(),
                "cannot open the configuration".to_owned(),
            ],
        },
    }
}

pub(crate) fn starts(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Start { .. }))
        .count()
}

pub(crate) fn stops(actions: &[Action]) -> Vec<InstanceId> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Stop { instance, .. } => Some(instance.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn routes(actions: &[Action]) -> Vec<(Option<u64>, usize)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Route { sets, .. } => Some(match sets.first() {
                Some(set) => (Some(set.release.0), set.instances.len()),
                None => (None, 0),
            }),
            _ => None,
        })
        .collect()
}
