//! The engine: starts, finds, stops and removes instances. Every call blocks and is idempotent by instance.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kiln_model::{
    Digest, ExitReason, ExitRecord, InstanceId, ServiceKey, StartFailure, StartFault, Timestamp,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::Hierarchy;
use crate::firewall::InsidePorts;
use crate::layers::{self, LayerError};
use crate::net::{NetError, Network};
use crate::shim::{self, Report, Running, ShimSpec};
use crate::spec::InstanceSpec;
use crate::{logs, state, sys};

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
}

impl Engine {
    pub fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { root } = options;
        let hierarchy = Self::preflight()?;
        for folder in [root.join("instances"), root.join("run/layers")] {
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
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        for needed in ["overlay", "erofs"] {
            if !known.split_whitespace().any(|name| name == needed) {
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
        self.root.join("instances").join(id.as_str())
    }

    /// Starts an instance; one that runs already is left as it is and told.
    pub fn start(&self, spec: &InstanceSpec) -> Result<Started, StartError> {
        let id = &spec.id;
        let folder = self.folder(id);
        let failed = |source| StartError::Folder {
            id: id.clone(),
            source,
        };
        let known = state::read_json::<ShimSpec>(&folder.join(shim::SPEC)).map_err(failed)?;
        if let Some(known) = known.map(|known| known.instance.generation)
            && spec.generation < known
        {
            return Err(StartError::Stale {
                id: id.clone(),
                asked: spec.generation,
                known,
            });
        }
        match self.inspect(id) {
            Some(InstanceState::Running(started)) => return Ok(started),
            // It had been started: what ended is not started again, a new instance is.
            Some(InstanceState::Ended(record)) if folder.join(shim::RUNNING).exists() => {
                return Err(StartError::new(
                    StartFault::Ended,
                    format!("instance {id} has run and ended: {:?}", record.reason),
                ));
            }
            Some(InstanceState::Ended(_)) | None => {}
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
        let layers = {
            // Two starts of one image must not both mount its layers.
            static MOUNTING: Mutex<()> = Mutex::new(());
            let _one = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
            layers::mount_all(&self.root.join("run/layers"), &spec.layers)?
        };
        let link = if spec.network {
            Some(self.network.give(id, spec.egress)?)
        } else {
            None
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let address = link.as_ref().map(|link| link.address);
        let handed = ShimSpec {
            instance: spec.clone(),
            folder: folder.clone(),
            layers,
            cgroup: self.cgroup_of(id),
            name_server: spec.network.then(|| self.network.gateway()),
            bridge: self.network.bridge.clone(),
            outside: self.network.outside(id),
            link,
        };
        state::write_json(&folder.join(shim::SPEC), &handed).map_err(failed)?;
        let running = spawn(&folder)?;
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
    pub fn inspect(&self, id: &InstanceId) -> Option<InstanceState> {
        let folder = self.folder(id);
        if !folder.join(shim::SPEC).exists() {
            return None;
        }
        let spec: Option<ShimSpec> = state::read_json(&folder.join(shim::SPEC)).ok().flatten();
        let running: Option<Running> = state::read_json(&folder.join(shim::RUNNING)).ok().flatten();
        let exit = || {
            state::read_json::<ExitRecord>(&folder.join(shim::EXIT))
                .ok()
                .flatten()
        };
        // In this order: a shim that ends in between has left its record by then.
        let running = running.map(|running| (lives(&running), running));
        match (exit(), running) {
            (Some(record), _) => Some(InstanceState::Ended(record)),
            (None, Some((true, running))) => Some(InstanceState::Running(Started {
                pid: running.pid.unsigned_abs(),
                address: spec.and_then(|spec| spec.link).map(|link| link.address),
                at: running.at,
            })),
            (None, _) => Some(InstanceState::Ended(ExitRecord {
                reason: ExitReason::Lost,
                at: shim::now(),
                last_lines: last_lines(&folder),
            })),
        }
    }

    /// Every instance of which something is left, ordered by id.
    pub fn list(&self) -> Vec<(InstanceId, InstanceState)> {
        let Ok(entries) = fs::read_dir(self.root.join("instances")) else {
            return Vec::new();
        };
        let mut ids: Vec<InstanceId> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.parse().ok())
            .collect();
        ids.sort();
        ids.into_iter()
            .filter_map(|id| self.inspect(&id).map(|state| (id, state)))
            .collect()
    }

    /// Waits for the instance's end, `timeout` at most.
    pub fn wait(&self, id: &InstanceId, timeout: Option<Duration>) -> Option<ExitRecord> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let running: Option<Running> = state::read_json(&self.folder(id).join(shim::RUNNING))
                .ok()
                .flatten();
            match self.inspect(id) {
                None => {
                    return Some(ExitRecord {
                        reason: ExitReason::Lost,
                        at: shim::now(),
                        last_lines: Vec::new(),
                    });
                }
                Some(InstanceState::Ended(record)) => return Some(record),
                Some(InstanceState::Running(_)) => {}
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            let shim = running.and_then(|running| Pid::from_raw(running.shim));
            let Some(Ok(shim)) = shim.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
                continue;
            };
            let timeout = left.and_then(|left| left.try_into().ok());
            let _ = poll(&mut [PollFd::new(&shim, PollFlags::IN)], timeout.as_ref());
        }
    }

    /// A descriptor that is readable when the instance's shim has ended; `None`: it has.
    pub fn end_of(&self, id: &InstanceId) -> Option<std::os::fd::OwnedFd> {
        let running: Running = state::read_json(&self.folder(id).join(shim::RUNNING))
            .ok()
            .flatten()?;
        let descriptor = pidfd_open(Pid::from_raw(running.shim)?, PidfdFlags::empty()).ok()?;
        // Opened first, asked then: a pid that was given to another process in between is seen here.
        lives(&running).then_some(descriptor)
    }

    /// Stop signal, `grace`, SIGKILL. Comes back when it has ended.
    pub fn stop(&self, id: &InstanceId, grace: Duration) -> Result<ExitRecord, EngineError> {
        let folder = self.folder(id);
        let failed = |source| EngineError::Folder {
            path: folder.clone(),
            source,
        };
        let running: Option<Running> =
            state::read_json(&folder.join(shim::RUNNING)).map_err(failed)?;
        if let Some(running) = running.filter(lives) {
            fs::write(folder.join(shim::GRACE), grace.as_millis().to_string()).map_err(failed)?;
            let _ = sys::kill(running.shim, libc::SIGTERM);
            if let Some(record) = self.wait(id, Some(grace + KILL_WAIT)) {
                return Ok(record);
            }
            // The shim takes its instance along.
            let _ = sys::kill(running.shim, libc::SIGKILL);
        }
        Ok(self.wait(id, Some(KILL_WAIT)).unwrap_or(ExitRecord {
            reason: ExitReason::Lost,
            at: shim::now(),
            last_lines: Vec::new(),
        }))
    }

    /// Nothing of the instance is left when this returns; its log is kept until [`Engine::sweep`].
    pub fn remove(&self, id: &InstanceId) -> Result<(), EngineError> {
        let folder = self.folder(id);
        let running: Option<Running> = state::read_json(&folder.join(shim::RUNNING)).ok().flatten();
        if let Some(running) = running.filter(lives) {
            let _ = sys::kill(running.shim, libc::SIGKILL);
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
        let kept = self.root.join("log/instances");
        if fs::create_dir_all(&kept).is_ok() {
            let _ = fs::rename(logs::path(folder), kept.join(id.as_str()));
        }
    }

    /// Where the instance's log is, or was kept.
    pub fn log_path(&self, id: &InstanceId) -> PathBuf {
        let live = logs::path(&self.folder(id));
        if live.exists() {
            live
        } else {
            self.root.join("log/instances").join(id.as_str())
        }
    }

    /// Removes what is left of every instance that is not in `keep`, unmounts layers that no kept instance needs, and forgets
    /// all but the newest kept logs.
    pub fn sweep(&self, keep: &BTreeSet<InstanceId>) -> Result<(), EngineError> {
        for (id, _) in self.list() {
            if !keep.contains(&id) {
                self.remove(&id)?;
            }
        }
        for name in self.hierarchy.children(&self.cgroup) {
            // kiln made no group of another form.
            let Ok(id) = InstanceId::try_from(name) else {
                continue;
            };
            if !keep.contains(&id) {
                // Busy is seen by the next sweep.
                let _ = self.hierarchy.group(&self.cgroup_of(&id)).destroy();
            }
        }
        let kept: BTreeSet<_> = keep.iter().map(|id| self.network.outside(id)).collect();
        for name in self.network.outsides() {
            if !kept.contains(&name) {
                let _ = self.network.delete(&name);
            }
        }
        self.unmount_unused();
        self.forget_logs();
        Ok(())
    }

    /// Unmounts the layers of images of which no instance is left.
    pub fn unmount_unused(&self) {
        let folder = self.root.join("run/layers");
        let needed = self
            .list()
            .into_iter()
            .filter_map(|(id, _)| {
                state::read_json::<ShimSpec>(&self.folder(&id).join(shim::SPEC))
                    .ok()
                    .flatten()
            })
            .flat_map(|spec| spec.layers)
            .collect();
        layers::unmount_unused(&folder, &needed);
    }

    fn forget_logs(&self) {
        /// Logs of ended instances that are kept.
        const KEPT: usize = 100;
        let Ok(entries) = fs::read_dir(self.root.join("log/instances")) else {
            return;
        };
        let mut logs: Vec<_> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        logs.sort();
        for (_, path) in logs.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the bridge and the empty control groups: the root is given up. Instances have to be removed before.
    pub fn close(&self) {
        self.unmount_unused();
        let _ = self.network.close();
        let _ = self.hierarchy.group(&self.cgroup).destroy();
    }
}

fn last_lines(folder: &Path) -> Vec<String> {
    logs::Reader::tail(&logs::path(folder), 20)
        .map(|(lines, _)| lines.into_iter().map(|line| line.text).collect())
        .unwrap_or_default()
}

/// The shim is the very process that was recorded: same boot, same pid, same start time.
fn lives(running: &Running) -> bool {
    running.boot == state::boot_id() && state::start_time(running.shim) == Some(running.shim_start)
}

fn spawn(folder: &Path) -> Result<Running, StartError> {
    let program = program().map_err(StartError::Spawn)?;
    let mut child = Command::new(program.path())
        .arg("shim")
        .arg(folder)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
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

/// A sealed copy of this program, in memory.
pub(crate) struct Program {
    file: File,
}

impl Program {
    pub(crate) fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

/// Made once: what runs is the program as it was when the first container was started.
pub(crate) fn program() -> io::Result<&'static Program> {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let made = copy_program()?;
    Ok(PROGRAM.get_or_init(|| made))
}

fn copy_program() -> io::Result<Program> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let copy = memfd_create("kiln", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(copy);
    let mut source = File::open("/proc/self/exe")?;
    io::copy(&mut source, &mut file)?;
    file.flush()?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(Program { file })
}
