//! The operator: edits a definition of several services and applies it, rolls back, takes down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use kiln_control::{Ask, Controller};
use kiln_model::api::{DownRequest, RollbackRequest};
use kiln_model::{
    BlueGreen, Digest, EnvName, EnvironmentSpec, HttpProbe, ImageOrigin, Policy, ProjectName,
    Release, Resources, ServiceName, ServiceSpec, Strategy, Timestamp, UnknownFields,
};

use crate::engine::Quality;
use crate::prober::WRONG;
use crate::random::Random;

const SERVICES: [&str; 3] = ["api", "web", "worker"];

pub(crate) struct Operator {
    random: Random,
    spec: EnvironmentSpec,
    /// By service.
    qualities: BTreeMap<ServiceName, Vec<Quality>>,
    services: Vec<ServiceName>,
}

fn name<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` is a valid name"))
}

impl Operator {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 3);
        let count = usize::try_from(random.between(1, 3)).unwrap_or(1);
        Self {
            random,
            spec: EnvironmentSpec {
                project: name::<ProjectName>("shop"),
                environment: name::<EnvName>("dev"),
                services: BTreeMap::new(),
            },
            qualities: BTreeMap::new(),
            services: SERVICES[..count].iter().map(|text| name(text)).collect(),
        }
    }

    /// What the operator does next; `None`: the controller does not plan it.
    pub(crate) fn ask(&mut self, core: &Controller) -> Option<Ask> {
        let index = self.random.between(0, self.services.len() as u64 - 1);
        let service = self.services[usize::try_from(index).unwrap_or(0)].clone();
        match self.random.between(0, 99) {
            0..=64 => self.deploy(&service),
            65..=80 => {
                return Some(Ask::Rollback(RollbackRequest {
                    environment: self.spec.environment.clone(),
                    service,
                    to: None,
                }));
            }
            81..=93 => self.change_policy(&service),
            94..=96 => {
                self.spec.services.remove(&service);
            }
            _ => {
                self.spec.services.clear();
                return Some(Ask::Down(DownRequest {
                    environment: None,
                    project: None,
                }));
            }
        }
        // Several changes in one apply.
        if self.random.percent(30) {
            let other = self.services[0].clone();
            self.deploy(&other);
        }
        let plan = core.plan(&self.spec).ok()?;
        Some(Ask::Apply(Box::new(plan)))
    }

    fn deploy(&mut self, service: &ServiceName) {
        let qualities = self.qualities.entry(service.clone()).or_default();
        let versions = qualities.len() as u64;
        let again = versions > 0 && self.random.percent(15);
        let version = if again {
            self.random.between(1, versions)
        } else {
            qualities.push(match self.random.between(0, 9) {
                0..=5 => Quality::Good,
                6 => Quality::NeverReady,
                7 => Quality::ExitsAtOnce,
                8 => Quality::CannotStart,
                _ => Quality::DiesSoon,
            });
            versions + 1
        };
        let quality = qualities[usize::try_from(version - 1).unwrap_or(0)];
        let image = Digest::from_sha256([u8::try_from(version).unwrap_or(0); 32]);
        let worker = service.as_str() == "worker";
        let release = Release {
            image,
            command: vec![quality.word().to_owned(), version.to_string()],
            env: BTreeMap::new(),
            user: String::new(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: (!worker).then_some(3000),
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
            unknown: UnknownFields::default(),
        };
        let policy = match self.spec.services.get(service) {
            Some(spec) if self.random.percent(60) => spec.policy.clone(),
            Some(_) | None => self.policy(service),
        };
        let origin = ImageOrigin {
            tag: format!("{service}:{version}"),
            digest: image,
            commit: None,
            dirty: false,
            baked_at: Timestamp(0),
        };
        let spec = ServiceSpec {
            release,
            policy,
            origin,
        };
        self.spec.services.insert(service.clone(), spec);
    }

    fn change_policy(&mut self, service: &ServiceName) {
        let policy = self.policy(service);
        if let Some(spec) = self.spec.services.get_mut(service) {
            spec.policy = policy;
        }
    }

    fn policy(&mut self, service: &ServiceName) -> Policy {
        let keep_warm = [0, 30, 900][usize::try_from(self.random.between(0, 2)).unwrap_or(0)];
        let replicas = [1, 1, 2, 3, 0][usize::try_from(self.random.between(0, 4)).unwrap_or(0)];
        let mut probe = |wrong: u64| {
            let path = if self.random.percent(wrong) {
                WRONG
            } else {
                "/ready"
            };
            self.random.percent(60).then(|| HttpProbe {
                path: path.to_owned(),
                period: Duration::from_millis(100),
                timeout: Duration::from_secs(1),
                successes: 1,
                failures: 1,
            })
        };
        let ready = probe(8);
        let live = probe(8);
        let base = 8000
            + SERVICES
                .iter()
                .position(|name| *name == service.as_str())
                .unwrap_or(0);
        let port =
            u16::try_from(base).unwrap_or(8000) + if self.random.percent(25) { 100 } else { 0 };
        let outside = service.as_str() != "worker";
        Policy {
            replicas,
            strategy: Strategy::BlueGreen(BlueGreen {
                keep_warm: Duration::from_secs(keep_warm),
            }),
            ready,
            live,
            progress_deadline: Duration::from_secs(self.random.between(10, 60)),
            soak: Duration::from_millis(self.random.between(0, 3_000)),
            drain_deadline: Duration::from_secs(self.random.between(0, 15)),
            stop_grace: Duration::from_secs(self.random.between(1, 5)),
            listen: outside.then(|| SocketAddr::from(([127, 0, 0, 1], port))),
            unknown: UnknownFields::default(),
        }
    }
}
