//! The local engine behind the protocol: each command becomes blocking calls on a thread of their own, and its outcome one
//! observation. Nothing here decides, and nothing is tried again: the controller does that.
//!
//! Commands about one instance are carried out one after the other, in the order they were given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kiln_engine::{Engine, InstanceSpec, InstanceState, LayerFile, TmpfsSpec};
use kiln_fs::with_causes;
use kiln_model::{
    Command, InstanceId, Observation, Release, ReleaseNumber, SeenInstance, SeenState, ServiceKey,
    StartFailure, StartFault,
};
use kiln_oci::Store;
use tokio::sync::Mutex;

/// Of one log file of an instance; one older of that size is kept.
const LOG_BYTES: u64 = 16 * 1024 * 1024;

/// How long after an end could not be waited for it is tried again.
const WAIT_AGAIN: Duration = Duration::from_secs(1);

/// Of a thread that waits for an instance's end.
const WAIT_STACK: usize = 256 * 1024;

/// One lock an instance that something is being done with.
type Turns = Arc<std::sync::Mutex<BTreeMap<InstanceId, Arc<Mutex<()>>>>>;

/// Hears what the engine says.
type Hear = Arc<dyn Fn(Observation) + Send + Sync>;

/// The engine of this machine. Clones are the same engine.
#[derive(Clone)]
pub struct LocalEngine {
    engine: Engine,
    store: Store,
    hear: Hear,
    turns: Turns,
}

/// What an instance is started from.
struct Start {
    instance: InstanceId,
    generation: u64,
    service: ServiceKey,
    number: ReleaseNumber,
    release: Box<Release>,
}

impl LocalEngine {
    /// `hear` is told everything that happens to instances from now on.
    pub fn new(
        engine: Engine,
        store: Store,
        hear: impl Fn(Observation) + Send + Sync + 'static,
    ) -> Self {
        Self {
            engine,
            store,
            hear: Arc::new(hear),
            turns: Turns::default(),
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Carries a command out. Needs a runtime of tokio.
    pub fn send(&self, command: Command) {
        let this = self.clone();
        match command {
            Command::Start {
                instance,
                generation,
                service,
                number,
                release,
            } => {
                let start = Start {
                    instance: instance.clone(),
                    generation: generation.0,
                    service,
                    number,
                    release,
                };
                self.in_turn(&instance, move || this.start(&start));
            }
            Command::Stop {
                instance,
                generation: _,
                grace,
            } => self.in_turn(&instance.clone(), move || this.stop(instance, grace)),
            Command::Remove {
                instance,
                generation: _,
            } => self.in_turn(&instance.clone(), move || this.remove(instance)),
            // The planner keeps the sets of this engine.
            Command::Scale { service, .. } => {
                eprintln!("kiln: the local engine keeps no sets, and was asked to scale {service}");
            }
            Command::Sync => {
                tokio::task::spawn_blocking(move || this.sync());
            }
        }
    }

    /// Where nobody listens, the controller ends, and the next one asks what there is.
    fn say(&self, observation: Observation) {
        (self.hear)(observation);
    }

    fn in_turn(&self, instance: &InstanceId, work: impl FnOnce() + Send + 'static) {
        let turn = {
            let mut turns = self
                .turns
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(instance.clone()).or_default())
        };
        tokio::spawn(async move {
            let _turn = turn.lock().await;
            if let Err(panic) = tokio::task::spawn_blocking(work).await {
                eprintln!("kiln: the engine broke off: {panic}");
            }
        });
    }

    fn start(&self, start: &Start) {
        let started = self.spec(start).and_then(|spec| {
            self.engine
                .start(&spec)
                .map_err(|error| StartFailure::new(error.fault(), with_causes(&error)))
        });
        let instance = start.instance.clone();
        match started {
            Ok(started) => {
                self.watch(&instance);
                let port = start.release.port;
                self.say(Observation::Started {
                    instance,
                    pid: Some(started.pid),
                    endpoint: started.address.zip(port).map(Into::into),
                    at: started.at,
                });
            }
            Err(failure) => self.say(Observation::StartFailed { instance, failure }),
        }
    }

    fn stop(&self, instance: InstanceId, grace: Duration) {
        self.say(match self.engine.stop(&instance, grace) {
            Ok(record) => Observation::Exited { instance, record },
            Err(error) => Observation::Failed {
                problem: format!(
                    "instance {instance} can't be stopped: {}",
                    with_causes(&error)
                ),
                instance,
            },
        });
    }

    fn remove(&self, instance: InstanceId) {
        let removed = self.engine.remove(&instance);
        let removed = removed.and_then(|()| self.engine.unmount_unused());
        self.say(match removed {
            Ok(()) => Observation::Removed { instance },
            Err(error) => Observation::Failed {
                problem: format!(
                    "instance {instance} can't be removed: {}",
                    with_causes(&error)
                ),
                instance,
            },
        });
    }

    /// Tells what there is, and from then on how it ends. What is left of no instance is removed.
    fn sync(&self) {
        let found = match self.engine.list() {
            Ok(found) => found,
            Err(error) => {
                let problem = format!("what runs can't be found out: {}", with_causes(&error));
                self.say(Observation::SyncFailed { problem });
                return;
            }
        };
        let keep: BTreeSet<_> = found.iter().map(|(id, _)| id.clone()).collect();
        let mut problems: BTreeMap<_, _> = match self.engine.sweep(&keep) {
            Ok(left) => left
                .into_iter()
                .map(|(id, error)| (id, with_causes(&error)))
                .collect(),
            Err(error) => {
                eprintln!(
                    "kiln: what is left of no instance stays: {}",
                    with_causes(&error)
                );
                BTreeMap::new()
            }
        };
        let instances = found.into_iter().map(|(instance, state)| {
            let state = match state {
                InstanceState::Running(_) => {
                    self.watch(&instance);
                    SeenState::Running
                }
                InstanceState::Ended(record) => SeenState::Ended(record),
            };
            SeenInstance {
                problem: problems.remove(&instance),
                instance,
                state,
            }
        });
        let instances = instances.collect();
        self.say(Observation::Synced { instances });
    }

    /// Tells when the instance ends. Each waits on a thread of its own: one that only sleeps costs some pages.
    fn watch(&self, instance: &InstanceId) {
        let (this, id) = (self.clone(), instance.clone());
        let waiting = std::thread::Builder::new()
            .name("kiln-wait".to_owned())
            .stack_size(WAIT_STACK)
            .spawn(move || {
                loop {
                    match this.engine.wait(&id, None) {
                        Ok(Some(record)) => {
                            this.say(Observation::Exited {
                                instance: id,
                                record,
                            });
                            return;
                        }
                        Ok(None) => {}
                        Err(error) => {
                            eprintln!(
                                "kiln: instance {id}: its end can't be waited for: {}",
                                with_causes(&error)
                            );
                            std::thread::sleep(WAIT_AGAIN);
                        }
                    }
                }
            });
        if let Err(error) = waiting {
            eprintln!("kiln: instance {instance}: its end can't be waited for: {error}");
        }
    }

    /// What the engine is given: the release, and who it is.
    fn spec(&self, start: &Start) -> Result<InstanceSpec, StartFailure> {
        let Start {
            instance,
            generation,
            service,
            number,
            release,
        } = start;
        if !release.is_known() {
            let names: Vec<_> = release.unknown.names().collect();
            return Err(StartFailure::new(
                StartFault::Release,
                format!(
                    "release {number} was made by a newer kiln, and this one does not know its {}: use that kiln",
                    names.join(", ")
                ),
            ));
        }
        Ok(InstanceSpec {
            id: instance.clone(),
            generation: *generation,
            layers: self.layers(release)?,
            argv: release.command.clone(),
            env: environment(service, *number, instance, release),
            cwd: release.workdir.clone(),
            user: release.user.clone(),
            stop_signal: release.stop_signal.clone(),
            tmpfs: release
                .tmpfs
                .iter()
                .map(|(path, tmpfs)| TmpfsSpec {
                    path: path.clone(),
                    size: tmpfs.size,
                })
                .collect(),
            memory: release.resources.memory,
            cpu_millis: release.resources.cpu_millis,
            pids: release.resources.pids,
            // A label of DNS is 63 characters long at most.
            hostname: instance.as_str().chars().take(63).collect(),
            network: true,
            egress: release.egress,
            search: Some(format!(
                "{}.{}",
                service.environment,
                kiln_model::ZONE.join(".")
            )),
            log_max_bytes: LOG_BYTES,
        })
    }

    fn layers(&self, release: &Release) -> Result<Vec<LayerFile>, StartFailure> {
        let unusable = |error: kiln_oci::StoreError| {
            let image = release.image;
            let detail = format!("the image {image} can't be used: {}", with_causes(&error));
            StartFailure::new(StartFault::Image, detail)
        };
        let store = self.store.in_session();
        let image = store.image(&release.image).map_err(unusable)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let files = store.erofs_files(layer).map_err(unusable)?;
            let files = files.into_iter();
            layers.extend(files.map(|(digest, path)| LayerFile { path, digest }));
        }
        Ok(layers)
    }
}

/// The release's environment, and who the instance is.
fn environment(
    service: &ServiceKey,
    number: ReleaseNumber,
    instance: &InstanceId,
    release: &Release,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = release
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let ServiceKey {
        environment,
        service,
    } = service;
    env.push(("KILN_SERVICE".to_owned(), service.to_string()));
    env.push(("KILN_ENVIRONMENT".to_owned(), environment.to_string()));
    env.push(("KILN_RELEASE".to_owned(), format!("{service}@{number}")));
    env.push(("KILN_INSTANCE".to_owned(), instance.to_string()));
    if let Some(port) = release.port
        && !release.env.contains_key("PORT")
    {
        env.push(("PORT".to_owned(), port.to_string()));
    }
    env
}
