//! The engine: starts, finds, stops and removes instances. Every call blocks and is idempotent by instance.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_fs::{Process, clock};
use kiln_model::{
    Digest, ExitReason, ExitRecord, InstanceId, ServiceKey, StartFailure, StartFault, Timestamp,
};
use rustix::process::Signal;

use crate::cgroup::Hierarchy;
use crate::firewall::InsidePorts;
use crate::layers::{self, LayerError};
use crate::net::{NetError, Network};
use crate::program::{Program, in_memory};
use crate::record::{self, Record, Running};
use crate::shim::{self, Report, ShimSpec};
use crate::spec::InstanceSpec;
use crate::{logs, sys};

/// Below the root: a folder an instance.
const INSTANCES: &str = "instances";
/// Below the root: where layers are mounted.
const LAYERS: &str = "run/layers";
/// Below the root: the logs of instances that are gone.
const KEPT_LOGS: &str = "log/instances";

/// Less than this, and the kernel kills an instance before it has begun.
const LEAST_MEMORY: u64 = 4 << 20;
/// After SIGKILL a process is gone when what it does in the kernel has ended.
const KILL_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The data root.
    pub root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "kiln needs root: containers are made with namespaces, mounts and control groups (run it with sudo)"
    )]
    NotRoot,
    #[error("this kernel lacks what kiln needs: {0}")]
    Kernel(String),
    #[error("the engine's folder {path} can't be used")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the network can't be used")]
    Network(#[from] NetError),
    #[error("instance {id} can't be asked to stop")]
    Ask {
        id: InstanceId,
        #[source]
        source: io::Error,
    },
    #[error(
        "instance {id} was killed and has not ended: it waits for the kernel, most likely for a disk"
    )]
    Unkillable { id: InstanceId },
    #[error("instance {id} can't be removed whole: {what}")]
    Remove {
        id: InstanceId,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Said by the shim or by what became the instance.
    #[error("{}", .0.detail)]
    Failed(StartFailure),
    #[error("generation {asked} of instance {id} is older than {known}, which it was started with")]
    Stale {
        id: InstanceId,
        asked: u64,
        known: u64,
    },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Network(#[from] NetError),
    #[error("the folder of instance {id} can't be used")]
    Folder {
        id: InstanceId,
        #[source]
        source: io::Error,
    },
    #[error("kiln's own program can't be executed as a shim")]
    Spawn(#[source] io::Error),
}

impl StartError {
    fn new(fault: StartFault, detail: String) -> Self {
        Self::Failed(StartFailure { fault, detail })
    }

    pub fn fault(&self) -> StartFault {
        match self {
            Self::Failed(failure) => failure.fault,
            Self::Stale { .. } => StartFault::Superseded,
            Self::Layer(error) => error.fault(),
            Self::Network(_) => StartFault::Network,
            Self::Folder { .. } | Self::Spawn(_) => StartFault::Host,
        }
    }

    /// Trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        self.fault().is_permanent()
    }
}

impl From<StartError> for StartFailure {
    fn from(error: StartError) -> Self {
        Self::new(error.fault(), kiln_fs::with_causes(&error))
    }
}

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The application's, as the host sees it.
    pub pid: u32,
    pub address: Option<Ipv4Addr>,
    pub at: Timestamp,
}

/// What the engine knows of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    Running(Started),
    /// It ended, and something of it is left.
    Ended(ExitRecord),
}

#[derive(Clone)]
pub struct Engine {
    root: PathBuf,
    network: Network,
    hierarchy: Hierarchy,
    cgroup: String,
    /// Whoever makes a layer needed, and whoever finds out which are, has it.
    needs: Arc<Mutex<()>>,
    /// Two starts of one image must not both mount its layers.
    mounting: Arc<Mutex<()>>,
}

impl Engine {
    pub fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { root } = options;
        let hierarchy = Self::preflight()?;
        for folder in [root.join(INSTANCES), root.join(LAYERS)] {
            fs::create_dir_all(&folder).map_err(|source| EngineError::Folder {
                path: folder,
                source,
            })?;
        }
        let network = Network::open(&root)?;
        network.ensure()?;
        let hash = Digest::of(root.as_os_str().as_encoded_bytes()).hex();
        Ok(Self {
            root,
            network,
            hierarchy,
            cgroup: format!("kiln-{}", &hash[..8]),
            needs: Arc::default(),
            mounting: Arc::default(),
        })
    }

    /// What kiln needs of the machine.
    pub fn check() -> Result<(), EngineError> {
        Self::preflight().map(|_| ())
    }

    fn preflight() -> Result<Hierarchy, EngineError> {
        if !rustix::process::geteuid().is_root() {
            return Err(EngineError::NotRoot);
        }
        let kernel = |text: String| EngineError::Kernel(text);
        let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        for needed in ["overlay", "erofs"] {
            if !file_systems.split_whitespace().any(|name| name == needed) {
                return Err(kernel(format!(
                    "no `{needed}` file system in /proc/filesystems: load its module (`modprobe {needed}`) or boot a kernel that has it"
                )));
            }
        }
        for needed in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
            if !Path::new("/proc/self/ns").join(needed).exists() {
                return Err(kernel(format!(
                    "it has no {needed} namespaces: boot one that has them"
                )));
            }
        }
        Hierarchy::find().map_err(kernel)
    }

    /// Where the proxy listens for instances, by the gateway's address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway()
    }

    /// From now on instances reach services and names at these ports of the gateway.
    pub fn open_inside(&self, ports: InsidePorts) -> Result<(), NetError> {
        self.network.open_inside(ports)
    }

    /// Mends bridge and firewall where something took them away. Cheap where nothing did.
    pub fn mend_network(&self) -> Result<(), NetError> {
        self.network.ensure()
    }

    /// Where instances reach the service: the same address until [`Engine::forget_service`].
    pub fn service_address(&self, key: &ServiceKey) -> Result<Ipv4Addr, NetError> {
        self.network.service_address(key)
    }

    pub fn forget_service(&self, key: &ServiceKey) -> Result<(), NetError> {
        self.network.forget_service(key)
    }

    fn folder(&self, id: &InstanceId) -> PathBuf {
        self.root.join(INSTANCES).join(id.as_str())
    }

    /// Starts an instance; one that runs already is left as it is and told.
    pub fn start(&self, spec: &InstanceSpec) -> Result<Started, StartError> {
        let id = &spec.id;
        let folder = self.folder(id);
        let failed = |source| StartError::Folder {
            id: id.clone(),
            source,
        };
        let before = Record::read(&folder).map_err(failed)?;
        if let Some(known) = before.map(|record| record.generation)
            && spec.generation < known
        {
            return Err(StartError::Stale {
                id: id.clone(),
                asked: spec.generation,
                known,
            });
        }
        match self.state_in(&folder).map_err(failed)? {
            Some((InstanceState::Running(started), _)) => return Ok(started),
            // It had been started: what ended is not started again, a new instance is.
            Some((InstanceState::Ended(record), true)) => {
                return Err(StartError::new(
                    StartFault::Ended,
                    format!("instance {id} has run and ended: {:?}", record.reason),
                ));
            }
            Some((InstanceState::Ended(_), false)) | None => {}
        }
        if let Some(memory) = spec.memory.filter(|memory| *memory < LEAST_MEMORY) {
            return Err(StartError::new(
                StartFault::LimitTooSmall,
                format!(
                    "a memory limit of {memory} bytes is too small to start anything: give `resources {{ memory }}` at least {LEAST_MEMORY}"
                ),
            ));
        }
        if crate::spec::stop_signal(&spec.stop_signal).is_none() {
            return Err(StartError::new(
                StartFault::Release,
                format!(
                    "`{}` is no signal that kiln knows: use a name of signal(7), such as SIGTERM, or a number",
                    spec.stop_signal
                ),
            ));
        }
        let link = if spec.network {
            Some(self.network.give(id, spec.egress)?)
        } else {
            None
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let mounts = self.root.join(LAYERS);
        let layers = layers::mount_points_of(&mounts, &spec.layers);
        {
            // From now on nobody unmounts what this instance needs, be it mounted already or not.
            let _needs = lock(&self.needs);
            let record = Record::new(spec.generation, layers.clone(), link.clone());
            record.write(&folder).map_err(failed)?;
        }
        let mounted = {
            let _one = lock(&self.mounting);
            layers::mount_all(&mounts, &spec.layers)
        };
        if let Err(error) = mounted {
            // Nothing was made that would have to be found again.
            Record::remove(&folder).map_err(failed)?;
            return Err(error.into());
        }
        let address = link.as_ref().map(|link| link.address);
        let handed = ShimSpec {
            instance: spec.clone(),
            layers,
            cgroup: self.cgroup_of(id),
            name_server: spec.network.then(|| self.network.gateway()),
            bridge: self.network.bridge.clone(),
            outside: self.network.outside(id),
            link,
        };
        let running = spawn(&folder, &handed)?;
        Ok(Started {
            pid: running.pid.unsigned_abs(),
            address,
            at: running.at,
        })
    }

    fn cgroup_of(&self, id: &InstanceId) -> String {
        format!("{}/{id}", self.cgroup)
    }

    /// `None`: nothing of it is left.
    pub fn inspect(&self, id: &InstanceId) -> Result<Option<InstanceState>, EngineError> {
        let folder = self.folder(id);
        let found = self.state_in(&folder);
        let found = found.map_err(|source| EngineError::Folder {
            path: folder,
            source,
        })?;
        Ok(found.map(|(state, _)| state))
    }

    /// The state, and whether it has been running.
    fn state_in(&self, folder: &Path) -> io::Result<Option<(InstanceState, bool)>> {
        let Some(record) = Record::read(folder)? else {
            return Ok(None);
        };
        let running = Running::read(folder)?;
        // In this order: a shim that ends in between has left its record by then.
        let lives = match &running {
            Some(running) => running.shim().lives()?,
            None => false,
        };
        let state = match (record::read_exit(folder)?, &running) {
            (Some(exit), _) => InstanceState::Ended(exit),
            (None, Some(running)) if lives => InstanceState::Running(Started {
                pid: running.pid.unsigned_abs(),
                address: record.link.map(|link| link.address),
                at: running.at,
            }),
            (None, _) => InstanceState::Ended(lost(last_lines(folder))),
        };
        Ok(Some((state, running.is_some())))
    }

    /// The instance's shim, if it lives.
    fn shim_of(&self, id: &InstanceId) -> Result<Option<(Running, Process)>, EngineError> {
        let folder = self.folder(id);
        let find = || {
            let Some(running) = Running::read(&folder)? else {
                return Ok(None);
            };
            let shim = Process::find(&running.shim())?;
            Ok(shim.map(|shim| (running, shim)))
        };
        find().map_err(|source| EngineError::Folder {
            path: folder.clone(),
            source,
        })
    }

    /// The ids of all instances of which something is left, in order.
    fn ids(&self) -> Result<Vec<InstanceId>, EngineError> {
        let folder = self.root.join(INSTANCES);
        let failed = |source| EngineError::Folder {
            path: folder.clone(),
            source,
        };
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().into_string();
            ids.extend(name.ok().and_then(|name| name.parse().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Every instance of which something is left, ordered by id.
    pub fn list(&self) -> Result<Vec<(InstanceId, InstanceState)>, EngineError> {
        let mut all = Vec::new();
        for id in self.ids()? {
            if let Some(state) = self.inspect(&id)? {
                all.push((id, state));
            }
        }
        Ok(all)
    }

    /// Waits for the instance's end, `timeout` at most. `None`: it runs still.
    pub fn wait(
        &self,
        id: &InstanceId,
        timeout: Option<Duration>,
    ) -> Result<Option<ExitRecord>, EngineError> {
        let deadline = timeout.map(|timeout| clock::boottime() + timeout);
        loop {
            // Opened before the state is asked for: should the shim end in between, that is seen here or by the descriptor.
            let shim = self.shim_of(id)?;
            match self.inspect(id)? {
                None => return Ok(Some(lost(Vec::new()))),
                Some(InstanceState::Ended(exit)) => return Ok(Some(exit)),
                Some(InstanceState::Running(_)) => {}
            }
            let left = deadline.map(|at| at.saturating_sub(clock::boottime()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            if let Some((_, shim)) = shim {
                shim.wait(left).map_err(|source| EngineError::Folder {
                    path: self.folder(id),
                    source,
                })?;
            }
        }
    }

    /// A descriptor that is readable when the instance's shim has ended; `None`: it has.
    pub fn end_of(&self, id: &InstanceId) -> Result<Option<OwnedFd>, EngineError> {
        Ok(self.shim_of(id)?.map(|(_, shim)| shim.into()))
    }

    /// Stop signal, `grace`, SIGKILL. Comes back when it has ended. To be called again after an error: what was begun goes on, and
    /// the grace does not begin anew.
    pub fn stop(&self, id: &InstanceId, grace: Duration) -> Result<ExitRecord, EngineError> {
        if let Some((running, shim)) = self.shim_of(id)? {
            ask_to_stop(&self.folder(id), &running, &shim, grace).map_err(|source| {
                EngineError::Ask {
                    id: id.clone(),
                    source,
                }
            })?;
            if let Some(exit) = self.wait(id, Some(grace.saturating_add(KILL_WAIT)))? {
                return Ok(exit);
            }
            // The shim takes its instance along.
            self.kill(id, &shim)?;
        }
        self.wait(id, Some(KILL_WAIT))?
            .ok_or_else(|| EngineError::Unkillable { id: id.clone() })
    }

    fn kill(&self, id: &InstanceId, shim: &Process) -> Result<(), EngineError> {
        let killed = shim.signal(Signal::KILL);
        let ended = killed.and_then(|_| shim.wait(Some(KILL_WAIT)));
        match ended {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::Unkillable { id: id.clone() }),
            Err(source) => Err(EngineError::Ask {
                id: id.clone(),
                source,
            }),
        }
    }

    /// Nothing of the instance is left when this returns; its log is kept until [`Engine::forget_logs`].
    pub fn remove(&self, id: &InstanceId) -> Result<(), EngineError> {
        let folder = self.folder(id);
        if let Some((_, shim)) = self.shim_of(id)? {
            self.kill(id, &shim)?;
        }
        let failed = |what| {
            move |source| EngineError::Remove {
                id: id.clone(),
                what,
                source,
            }
        };
        self.hierarchy
            .group(&self.cgroup_of(id))
            .destroy()
            .map_err(failed("its control group is still in use"))?;
        self.network
            .delete(&self.network.outside(id))
            .map_err(failed("its network"))?;
        self.network.take_back(id)?;
        self.keep_log(id, &folder);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("its folder")(error))
            }
            _ => Ok(()),
        }
    }

    /// What it said last is worth reading after it is gone.
    fn keep_log(&self, id: &InstanceId, folder: &Path) {
        let kept = self.root.join(KEPT_LOGS);
        if fs::create_dir_all(&kept).is_ok() {
            let _ = fs::rename(logs::path(folder), kept.join(id.as_str()));
        }
    }

    /// Where the instance's log is, or was kept.
    pub fn log_path(&self, id: &InstanceId) -> PathBuf {
        let folder = self.folder(id);
        // The file itself is made a moment after the instance has started.
        if folder.exists() {
            logs::path(&folder)
        } else {
            self.root.join(KEPT_LOGS).join(id.as_str())
        }
    }

    /// Removes what is left of every instance that is not in `keep`, and unmounts layers that no kept instance needs. Gives what
    /// could not be removed, and why; the next call tries again.
    pub fn sweep(
        &self,
        keep: &BTreeSet<InstanceId>,
    ) -> Result<Vec<(InstanceId, EngineError)>, EngineError> {
        let mut left = Vec::new();
        for id in self.ids()? {
            if !keep.contains(&id)
                && let Err(error) = self.remove(&id)
            {
                left.push((id, error));
            }
        }
        for name in self.hierarchy.children(&self.cgroup) {
            let Ok(id) = name.parse::<InstanceId>() else {
                continue;
            };
            if keep.contains(&id) || left.iter().any(|(told, _)| *told == id) {
                continue;
            }
            if let Err(source) = self.hierarchy.group(&self.cgroup_of(&id)).destroy() {
                let what = "its control group is still in use";
                left.push((id.clone(), EngineError::Remove { id, what, source }));
            }
        }
        let kept: BTreeSet<_> = keep.iter().map(|id| self.network.outside(id)).collect();
        for name in self.network.outsides() {
            if !kept.contains(&name) {
                // Whose it was is not in its name: the sweep after a restart tries again.
                let _ = self.network.delete(&name);
            }
        }
        self.unmount_unused()?;
        self.forget_logs();
        Ok(left)
    }

    /// Unmounts the layers of images of which no instance is left.
    pub fn unmount_unused(&self) -> Result<(), EngineError> {
        let _needs = lock(&self.needs);
        let mut needed = BTreeSet::new();
        for id in self.ids()? {
            let folder = self.folder(&id);
            let record = Record::read(&folder).map_err(|source| EngineError::Folder {
                path: folder,
                source,
            })?;
            needed.extend(record.into_iter().flat_map(|record| record.layers));
        }
        layers::unmount_unused(&self.root.join(LAYERS), &needed);
        Ok(())
    }

    /// Forgets kept logs of ended instances but for the newest, by number, size and age. Cheap: to be called now and then, since
    /// an instance that fails again and again leaves one each time.
    pub fn forget_logs(&self) {
        logs::forget_old(&self.root.join(KEPT_LOGS), clock::wall());
    }

    /// Removes the bridge and the empty control groups: the root is given up. Instances have to be removed before.
    pub fn close(&self) {
        // What is left then is found by the next engine on this root.
        let _ = self.unmount_unused();
        let _ = self.network.close();
        let _ = self.hierarchy.group(&self.cgroup).destroy();
    }
}

fn last_lines(folder: &Path) -> Vec<String> {
    logs::Reader::tail(&logs::path(folder), 20)
        .map(|(lines, _)| lines.into_iter().map(|line| line.text).collect())
        .unwrap_or_default()
}

fn lost(last_lines: Vec<String>) -> ExitRecord {
    ExitRecord {
        reason: ExitReason::Lost,
        at: shim::now(),
        last_lines,
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_to_stop(
    folder: &Path,
    running: &Running,
    shim: &Process,
    grace: Duration,
) -> io::Result<()> {
    // 24 days are as good as for ever.
    let millis = i32::try_from(grace.as_millis()).unwrap_or(i32::MAX);
    if !running.takes_grace_with_signal() {
        fs::write(folder.join(record::GRACE), millis.to_string())?;
    }
    match sys::signal_with_value(shim, libc::SIGTERM, millis) {
        // It has ended.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        sent => sent,
    }
}

fn spawn(folder: &Path, spec: &ShimSpec) -> Result<Running, StartError> {
    let program = Program::copy().map_err(StartError::Spawn)?;
    let mut handed = in_memory("spec", spec).map_err(StartError::Spawn)?;
    handed.rewind().map_err(StartError::Spawn)?;
    let mut child = Command::new(program.path())
        .arg(shim::ROLE)
        .arg(folder)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(handed))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(StartError::Spawn)?;
    let mut said = Vec::new();
    let read = child
        .stdout
        .take()
        .map(|mut stdout| stdout.read_to_end(&mut said));
    child.wait().map_err(StartError::Spawn)?;
    if let Some(Err(error)) = read {
        return Err(StartError::Spawn(error));
    }
    match serde_json::from_slice(&said) {
        Ok(Report::Started(running)) => Ok(running),
        Ok(Report::Failed(failure)) => Err(StartError::Failed(failure)),
        Err(_) => Err(StartError::new(
            StartFault::Host,
            "the shim ended before it could say how the start went: was it killed?".to_owned(),
        )),
    }
}
