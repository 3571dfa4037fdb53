//! Carries out what the planner decided: each action becomes blocking calls to the engine on a thread of their own, and their
//! outcome one input to the owner. Nothing here decides.
//!
//! Actions about one instance are carried out one after the other, in the order they were issued.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_engine::{Engine, EngineError, InstanceSpec, InstanceState, LayerFile, TmpfsSpec};
use kiln_model::{
    InstanceId, Observation, Release, ReleaseNumber, ServiceKey, StartFailure, StartFault,
};
use kiln_oci::Store;
use kiln_plan::{Action, Service};
use kiln_supervise::handoff;
use tokio::sync::{Mutex, mpsc};

use crate::owner::{Input, chain_of};

/// Of one log file of an instance; one older of that size is kept.
const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How long after the engine failed at something it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Of a thread that waits for an instance's end.
const WAIT_STACK: usize = 256 * 1024;

#[derive(Clone)]
pub(crate) struct Effects {
    root: PathBuf,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    inputs: mpsc::UnboundedSender<Input>,
    /// One lock an instance that something is being done with.
    turns: Arc<std::sync::Mutex<BTreeMap<InstanceId, Arc<Mutex<()>>>>>,
}

impl Effects {
    pub(crate) fn new(
        root: PathBuf,
        engine: Engine,
        store: Store,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Self {
        Self {
            root,
            engine,
            store,
            inputs,
            turns: Arc::default(),
        }
    }

    /// What became of the instances that the journal knows, while no controller looked. Everything else that the engine has
    /// left is removed. What can't be found out or removed is told beside: it hides nothing of the rest.
    pub(crate) fn adopt(
        &self,
        known: &[(ServiceKey, InstanceId)],
    ) -> (Vec<(ServiceKey, Observation)>, Vec<EngineError>) {
        let keep: BTreeSet<_> = known.iter().map(|(_, id)| id.clone()).collect();
        let mut observed = Vec::new();
        let mut errors = Vec::new();
        for (key, instance) in known {
            let instance = instance.clone();
            match self.engine.inspect(&instance) {
                Ok(Some(InstanceState::Running(_))) => self.watch(key, &instance),
                Ok(Some(InstanceState::Ended(record))) => {
                    observed.push((key.clone(), Observation::Exited { instance, record }));
                }
                // It was not started yet, or it is removed: the action that says which is still outstanding.
                Ok(None) => {}
                Err(error) => {
                    errors.push(error);
                    // It asks until there is an answer.
                    self.watch(key, &instance);
                }
            }
        }
        match self.engine.sweep(&keep) {
            Ok(left) => errors.extend(left.into_iter().map(|(_, error)| error)),
            Err(error) => errors.push(error),
        }
        (observed, errors)
    }

    /// Tells the owner when the instance ends. Each waits on a thread of its own: one that only sleeps costs some pages.
    pub(crate) fn watch(&self, key: &ServiceKey, instance: &InstanceId) {
        let (this, key, id) = (self.clone(), key.clone(), instance.clone());
        let waiting = std::thread::Builder::new()
            .name("kiln-wait".to_owned())
            .stack_size(WAIT_STACK)
            .spawn(move || {
                let record = loop {
                    match this.engine.wait(&id, None) {
                        Ok(Some(record)) => break record,
                        Ok(None) => {}
                        Err(error) => {
                            this.tried("wait", Err(error));
                            std::thread::sleep(RETRY);
                        }
                    }
                    if this.inputs.is_closed() {
                        return;
                    }
                };
                this.tried("wait", Ok(()));
                this.say(
                    &key,
                    Observation::Exited {
                        instance: id,
                        record,
                    },
                );
            });
        if let Err(error) = waiting {
            eprintln!("kiln: instance {instance}: its end can't be waited for: {error}");
        }
    }

    /// What the engine could not do is shown until it can.
    fn tried(&self, what: &'static str, result: Result<(), EngineError>) {
        let _ = self.inputs.send(Input::Tried(what, result));
    }

    /// Calls the engine until it can do what it is asked to. `None`: the controller ends.
    async fn until_done<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl Fn(&Engine) -> Result<T, EngineError> + Clone + Send + 'static,
    ) -> Option<T> {
        let mut failed = false;
        loop {
            let (engine, call) = (self.engine.clone(), call.clone());
            let called = tokio::task::spawn_blocking(move || call(&engine)).await;
            match called {
                Ok(Ok(done)) => {
                    if failed {
                        self.tried(what, Ok(()));
                    }
                    return Some(done);
                }
                Ok(Err(error)) => {
                    failed = true;
                    self.tried(what, Err(error));
                }
                // A panic is a mistake of ours, and says itself on stderr. Or the runtime ends.
                Err(_) => {}
            }
            if self.inputs.is_closed() {
                return None;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn say(&self, key: &ServiceKey, observation: Observation) {
        let _ = self.inputs.send(Input::Observed(key.clone(), observation));
    }

    pub(crate) fn carry_out(&self, key: &ServiceKey, service: &Service, action: Action) {
        let (this, key) = (self.clone(), key.clone());
        match action {
            Action::Start {
                id,
                instance,
                release,
            } => {
                let Some(record) = service.release(release) else {
                    return;
                };
                let release_body = record.release.clone();
                self.in_turn(&instance.clone(), async move {
                    let spec = this.spec(&key, &instance, id.0, release, &release_body);
                    let engine = this.engine.clone();
                    let started = tokio::task::spawn_blocking(move || match spec {
                        Ok(spec) => engine.start(&spec).map_err(StartFailure::from),
                        Err(failure) => Err(failure),
                    })
                    .await;
                    let observation = match started {
                        Ok(Ok(started)) => Observation::Started {
                            instance,
                            pid: Some(started.pid),
                            endpoint: started
                                .address
                                .zip(release_body.port)
                                .map(|(address, port)| (address, port).into()),
                            at: started.at,
                        },
                        Ok(Err(failure)) => Observation::StartFailed { instance, failure },
                        Err(panic) => Observation::StartFailed {
                            instance,
                            failure: StartFailure::new(StartFault::Host, panic.to_string()),
                        },
                    };
                    this.say(&key, observation);
                });
            }
            Action::Stop {
                id: _,
                instance,
                grace,
            } => {
                self.in_turn(&instance.clone(), async move {
                    let id = instance.clone();
                    let stopped = this.until_done("stop", move |engine| engine.stop(&id, grace));
                    if let Some(record) = stopped.await {
                        this.say(&key, Observation::Exited { instance, record });
                    }
                });
            }
            Action::Remove { id: _, instance } => {
                self.in_turn(&instance.clone(), async move {
                    let id = instance.clone();
                    let removed = this.until_done("remove", move |engine| {
                        engine.remove(&id)?;
                        engine.unmount_unused()
                    });
                    if removed.await.is_some() {
                        this.say(&key, Observation::Removed { instance });
                    }
                });
            }
            // The owner's own.
            Action::Route { .. } => {}
        }
    }

    fn in_turn(&self, instance: &InstanceId, work: impl Future<Output = ()> + Send + 'static) {
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
            work.await;
        });
    }

    /// What the engine is given: the release, and who it is.
    fn spec(
        &self,
        key: &ServiceKey,
        instance: &InstanceId,
        generation: u64,
        number: ReleaseNumber,
        release: &Release,
    ) -> Result<InstanceSpec, StartFailure> {
        let unusable = |error: kiln_oci::StoreError| {
            let detail = format!(
                "the image {} can't be used: {}",
                release.image,
                chain_of(&error)
            );
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
        let mut env: Vec<(String, String)> = release
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        env.push(("KILN_SERVICE".to_owned(), key.service.to_string()));
        env.push(("KILN_ENVIRONMENT".to_owned(), key.environment.to_string()));
        env.push((
            "KILN_RELEASE".to_owned(),
            format!("{}@{number}", key.service),
        ));
        env.push(("KILN_INSTANCE".to_owned(), instance.to_string()));
        if let Some(port) = release.port
            && !release.env.contains_key("PORT")
        {
            env.push(("PORT".to_owned(), port.to_string()));
        }
        Ok(InstanceSpec {
            id: instance.clone(),
            generation,
            layers,
            argv: release.command.clone(),
            env,
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
                key.environment,
                kiln_model::ZONE.join(".")
            )),
            log_max_bytes: LOG_BYTES,
        })
    }

    /// Ends controller, proxy and supervisor. Instances have been stopped before, or stay.
    pub(crate) fn shut_down(&self) -> Result<(), handoff::HandoffError> {
        if self.engine.list().is_ok_and(|left| left.is_empty()) {
            self.engine.close();
        }
        let root = self.root.clone();
        // The supervisor waits for us to end, so it is asked from beside.
        std::thread::spawn(move || handoff::Client::connect(&root).and_then(|mut s| s.shutdown()));
        Ok(())
    }
}
