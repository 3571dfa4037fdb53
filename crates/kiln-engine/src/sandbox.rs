//! A bake step as a container: the writable root is the caller's, as is the choice of a network; of the capabilities there are only
//! those that unpacking and maintainer scripts need, unless the step is privileged. Or, for an image's tests, as an instance would
//! be, but without a network.
//!
//! [`run`] starts a process of this program in the role `sandbox` ([`role`]) and hands on what it says. When the caller dies, so does
//! the step; what it mounted was only ever in the step's own mount namespace.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_fs::clock;
use kiln_model::{StartFailure, StartFault};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Group, Hierarchy, Limits};
use crate::container::{self, Container};
use crate::init::{AppEnd, AppStatus};
use crate::mounts::{self, MountSource, SandboxMount};
use crate::program::{Program, in_memory};
use crate::root::Root;
use crate::rootfs::{self, Names};
use crate::seccomp::Filters;
use crate::spec::TmpfsSpec;
use crate::step_network::StepLink;
use crate::sys;
use crate::{children, layers, namespaces, record, rights};

/// What unpacking and maintainer scripts need.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETFCAP);

/// What a step is run on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// EROFS files or folders, bottom to top; may be empty.
    pub lowers: Vec<PathBuf>,
    /// What the step changes is found here: an overlay's upper folder, or, without lowers, the whole root.
    pub upper: PathBuf,
    /// An empty folder on the same file system as `upper`, for the overlay and for kiln; emptied by the caller.
    pub work: PathBuf,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// `""` is `/`.
    pub cwd: String,
    pub user: String,
    pub hostname: String,
    pub mounts: Vec<SandboxMount>,
    pub network: SandboxNetwork,
    /// Every capability, every system call, nothing of /proc and /sys hidden.
    pub privileged: bool,
    /// Bytes.
    pub memory: Option<u64>,
    pub pids: Option<u64>,
    /// Milliseconds.
    pub time_limit: Option<u64>,
    /// As an instance is: the lowers alone, with no capabilities, where only these, `/tmp`, `/run` and `/dev/shm` can be
    /// written to. `upper` is then kiln's own.
    pub as_instance: Option<Vec<TmpfsSpec>>,
}

/// What of a network a step has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SandboxNetwork {
    /// Only its own loopback.
    None,
    Outbound(StepLink),
    /// The host's own.
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxExit {
    Exited(i32),
    Signalled(i32),
    OutOfMemory,
    TimedOut,
    /// The caller wanted it no more.
    Stopped,
}

/// What is known of a step that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub exit: SandboxExit,
    /// Something of it was sent to beyond its container.
    pub used_network: bool,
    /// It was refused a process, for its limit of them.
    pub out_of_processes: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the step's container can't be started: {0}")]
    Start(String),
    #[error("kiln's own program can't be executed for the step")]
    Spawn(#[source] io::Error),
    #[error("the step's folder {path} can't be used")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the step's container was killed from outside")]
    Killed,
}

/// What the role says at its end, in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ended(Ended),
    Failed(String),
}

pub(crate) const ROLE: &str = "sandbox";

/// Of a step's control group; the pid of its holder follows.
const GROUP: &str = "kiln-step-";
const VERDICT: &str = "verdict.json";

/// A step that has begun, for who asks something of it meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    holder: i32,
}

impl Running {
    /// A connection to `address` in the network of the step, which is its own loopback.
    pub fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let children = format!("/proc/{pid}/task/{pid}/children", pid = self.holder);
        let children = fs::read_to_string(children)?;
        let init = children.split_whitespace().next();
        let init = init.ok_or(io::ErrorKind::ConnectionRefused)?;
        let network = File::open(format!("/proc/{init}/ns/net"))?;
        // A thread has a network of its own once it has moved, and a socket keeps that of where it was made.
        let connect = move || {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind))?;
            TcpStream::connect_timeout(&address, timeout)
        };
        std::thread::spawn(connect)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// How often the processes that a step was refused are counted, in milliseconds.
const WATCH_MS: i64 = 1000;
/// A step that is refused so many processes goes on asking for ever.
const REFUSALS: u64 = 10_000;
/// How soon a step that is to stop is told.
const TURN: Duration = Duration::from_millis(50);

/// Runs a step to its end, or until `stop`. To be called from a thread that lives until then: the step is tied to it.
pub fn run(
    spec: &SandboxSpec,
    stop: &dyn Fn() -> bool,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<SandboxExit, SandboxError> {
    run_to_end(spec, |_| {}, stop, output).map(|ended| ended.exit)
}

/// As [`run`]; `began` gets the step before anything of it is executed.
pub fn run_watched(
    spec: &SandboxSpec,
    began: impl FnOnce(Running),
    stop: &dyn Fn() -> bool,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<SandboxExit, SandboxError> {
    run_to_end(spec, began, stop, output).map(|ended| ended.exit)
}

/// As [`run_watched`], with all that is known of the step afterwards.
pub fn run_to_end(
    spec: &SandboxSpec,
    began: impl FnOnce(Running),
    stop: &dyn Fn() -> bool,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Ended, SandboxError> {
    let mut child = spawn(spec, [Stdio::null(), Stdio::piped(), Stdio::piped()])?;
    let (mut stdout, mut stderr) = (child.process.stdout.take(), child.process.stderr.take());
    let holder = i32::try_from(child.process.id())
        .map_err(|error| SandboxError::Spawn(io::Error::other(error)))?;
    began(Running { holder });
    let turn = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(TURN.subsec_nanos()),
    };
    let mut stopped = false;
    let mut chunk = vec![0; 64 * 1024];
    while stdout.is_some() || stderr.is_some() {
        let mut polled = Vec::new();
        polled.extend(stdout.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        polled.extend(stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let _ = poll(&mut polled, Some(&turn));
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if !stopped && stop() {
            stopped = true;
            // It cleans up, and ends the step with it. It is not waited for yet, so the number is still its own.
            let _ = sys::kill(holder, libc::SIGTERM);
        }
        let has_stdout = stdout.is_some();
        if has_stdout
            && ready[0]
            && let Some(pipe) = &mut stdout
        {
            match pipe.read(&mut chunk) {
                Ok(0) | Err(_) => stdout = None,
                Ok(read) => output(Stream::Stdout, &chunk[..read]),
            }
        }
        if ready.get(usize::from(has_stdout)) == Some(&true)
            && let Some(pipe) = &mut stderr
        {
            match pipe.read(&mut chunk) {
                Ok(0) | Err(_) => stderr = None,
                Ok(read) => output(Stream::Stderr, &chunk[..read]),
            }
        }
    }
    // A step may close its output long before it ends.
    while child
        .process
        .try_wait()
        .map_err(SandboxError::Spawn)?
        .is_none()
    {
        let pid = Pid::from_child(&child.process);
        let end = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| SandboxError::Spawn(error.into()))?;
        let _ = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&turn));
        if !stopped && stop() {
            stopped = true;
            let _ = sys::kill(holder, libc::SIGTERM);
        }
    }
    verdict(spec, stopped)
}

/// Runs a step that has this process's own input and output, to its end.
pub fn interact(spec: &SandboxSpec) -> Result<Ended, SandboxError> {
    let mut child = spawn(spec, [Stdio::inherit(), Stdio::inherit(), Stdio::inherit()])?;
    child.process.wait().map_err(SandboxError::Spawn)?;
    verdict(spec, false)
}

/// The holder, and the spec that it may still have to read.
struct Holder {
    process: Child,
    _spec: File,
}

fn spawn(spec: &SandboxSpec, [stdin, stdout, stderr]: [Stdio; 3]) -> Result<Holder, SandboxError> {
    let folder = |source| SandboxError::Folder {
        path: spec.work.clone(),
        source,
    };
    fs::create_dir_all(&spec.work).map_err(folder)?;
    let file = in_memory("step", spec).map_err(folder)?;
    // The child opens it by this process's descriptor.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let program = Program::copy().map_err(SandboxError::Spawn)?;
    let process = Command::new(program.path())
        .arg(ROLE)
        .arg(&path)
        // Says whose it is where processes are listed.
        .arg(&spec.work)
        .env_clear()
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(SandboxError::Spawn)?;
    Ok(Holder {
        process,
        _spec: file,
    })
}

fn verdict(spec: &SandboxSpec, stopped: bool) -> Result<Ended, SandboxError> {
    let path = spec.work.join(VERDICT);
    let verdict: Option<Verdict> =
        record::read_json(&path).map_err(|source| SandboxError::Folder {
            path: spec.work.clone(),
            source,
        })?;
    let _ = fs::remove_file(path);
    match verdict {
        Some(Verdict::Ended(ended)) => Ok(ended),
        Some(Verdict::Failed(reason)) => Err(SandboxError::Start(reason)),
        // It was told before it could say anything.
        None if stopped => Ok(Ended {
            exit: SandboxExit::Stopped,
            used_network: false,
            out_of_processes: false,
        }),
        None => Err(SandboxError::Killed),
    }
}

/// The process that holds a step.
pub(crate) fn role(path: &Path) -> i32 {
    let Ok(Some(spec)) = record::read_json::<SandboxSpec>(path) else {
        return 125;
    };
    let _ = rights::die_with_parent();
    sys::block_all_signals();
    let verdict = match step(&spec) {
        Ok(ended) => Verdict::Ended(ended),
        Err(reason) => Verdict::Failed(reason),
    };
    match record::write_json(&spec.work.join(VERDICT), &verdict) {
        Ok(()) => 0,
        Err(_) => 125,
    }
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn step(spec: &SandboxSpec) -> Result<Ended, String> {
    let hierarchy = Hierarchy::find()?;
    sweep(&hierarchy);
    let group = hierarchy.group(&format!("{GROUP}{}", std::process::id()));
    let is_step = spec.as_instance.is_none();
    let filters = Filters::new(is_step).and_then(|filters| {
        if keeps_something(spec) {
            Ok(filters)
        } else {
            filters.without_syncs()
        }
    });
    let filters = filters.map_err(failed("the system call filter"))?;
    let lowers = mount_lowers(spec)?;
    let limits = Limits {
        memory: spec.memory,
        cpu_millis: None,
        pids: spec.pids,
    };
    group
        .create(limits)
        .map_err(failed("making the control group"))?;
    let result = in_group(spec, lowers, &group, &filters);
    let destroyed = group
        .destroy()
        .map_err(failed("removing the control group"));
    let ended = result?;
    destroyed.map(|()| ended)
}

/// Whether it writes where others will read what a power failure left: in a folder of the host, such as a cache mount's.
fn keeps_something(spec: &SandboxSpec) -> bool {
    let is_kept =
        |mount: &SandboxMount| mount.writable && matches!(mount.source, MountSource::Folder { .. });
    spec.mounts.iter().any(is_kept)
}

/// Removes the groups of steps whose holder was killed.
fn sweep(hierarchy: &Hierarchy) {
    for name in hierarchy.children("") {
        let is_dead = name
            .strip_prefix(GROUP)
            .is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if is_dead {
            // One that stays is found by the next step.
            let _ = hierarchy.group(&name).destroy();
        }
    }
}

/// The lowers as folders, mounted where nobody else sees them.
fn mount_lowers(spec: &SandboxSpec) -> Result<Vec<PathBuf>, String> {
    namespaces::own_mounts().map_err(failed("making a mount namespace"))?;
    spec.lowers
        .iter()
        .enumerate()
        .map(|(index, lower)| {
            if lower.is_dir() {
                return Ok(lower.clone());
            }
            let point = spec.work.join(format!("lower{index}"));
            fs::create_dir_all(&point).map_err(failed("making a folder"))?;
            layers::mount(lower, &point)
                .map_err(|error| format!("mounting the layer {}: {error}", lower.display()))?;
            Ok(point)
        })
        .collect()
}

fn in_group(
    spec: &SandboxSpec,
    lowers: Vec<PathBuf>,
    group: &Group,
    filters: &Filters,
) -> Result<Ended, String> {
    let container = container(spec, lowers)?;
    let connect = |init| match &spec.network {
        SandboxNetwork::Outbound(step) => step.connect(init).map_err(|error| {
            let detail = format!("connecting the step's network: {error}");
            StartFailure::new(StartFault::Network, detail)
        }),
        SandboxNetwork::None | SandboxNetwork::Host => Ok(()),
    };
    // The step's standard streams are this process's own.
    let launched = container::launch(&container, filters, group, || Ok(()), connect);
    // The caller waits for the end of these, and the step's processes have their own.
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let container::Launched { init, status } = launched.map_err(|failure| failure.detail)?;
    let end = wait_for(init, spec.time_limit.map(Duration::from_millis), group);
    let told = container::read_all(&status).map_err(failed("the step's end"))?;
    let told: Option<AppEnd> = serde_json::from_slice(&told).ok();
    let used_network = told.as_ref().is_some_and(|told| told.sent > 0);
    let exit = match (end, told.map(|told| told.status)) {
        (Some(End::TimedOut), _) => SandboxExit::TimedOut,
        (Some(End::Stopped), _) => SandboxExit::Stopped,
        (None | Some(End::ForkedTooMuch), Some(AppStatus::Exited(0))) => SandboxExit::Exited(0),
        _ if group.oom_kills() > 0 => SandboxExit::OutOfMemory,
        (_, Some(AppStatus::Exited(code))) => SandboxExit::Exited(code),
        (_, Some(AppStatus::Signalled(signal))) => SandboxExit::Signalled(signal),
        (_, None) => SandboxExit::Signalled(libc::SIGKILL),
    };
    Ok(Ended {
        exit,
        used_network,
        out_of_processes: group.refused() > 0,
    })
}

fn container(spec: &SandboxSpec, lowers: Vec<PathBuf>) -> Result<Container, String> {
    let target = spec.work.join("root");
    let overlay_work = spec.work.join("work");
    for folder in [&target, &overlay_work] {
        fs::create_dir_all(folder).map_err(failed("making a folder"))?;
    }
    let root = if let Some(tmpfs) = &spec.as_instance {
        let names = Names {
            hostname: &spec.hostname,
            address: None,
            server: None,
            search: None,
        };
        let top = spec.work.join("top");
        rootfs::generate_top(&top, &lowers, &names, tmpfs).map_err(|error| error.to_string())?;
        Root::ReadOnly {
            layers: lowers,
            top,
        }
    } else if lowers.is_empty() {
        Root::Folder {
            path: spec.upper.clone(),
        }
    } else {
        Root::Writable {
            lowers,
            upper: spec.upper.clone(),
            work: overlay_work,
        }
    };
    Ok(Container {
        root,
        target,
        hostname: spec.hostname.clone(),
        tmpfs: spec.as_instance.clone().unwrap_or_default(),
        mounts: mounts::prepare(&spec.mounts)?,
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        capabilities: match spec.as_instance {
            None => CAPABILITIES,
            Some(_) => CapabilitySet::empty(),
        },
        link: match &spec.network {
            SandboxNetwork::Outbound(step) => Some(step.link().clone()),
            SandboxNetwork::None | SandboxNetwork::Host => None,
        },
        host_network: matches!(spec.network, SandboxNetwork::Host),
        privileged: spec.privileged,
    })
}

/// Why a step was ended by its holder.
#[derive(Clone, Copy)]
enum End {
    TimedOut,
    Stopped,
    /// It asks for processes that its limit refuses, and would for ever.
    ForkedTooMuch,
}

/// Waits until the step has ended, and ends it where it has to.
fn wait_for(init: i32, limit: Option<Duration>, group: &Group) -> Option<End> {
    let deadline = limit.map(|limit| clock::boottime().saturating_add(limit));
    let mut end = None;
    loop {
        let left = deadline.map(|at| at.saturating_sub(clock::boottime()));
        let left = left.map_or(WATCH_MS, |left| {
            i64::try_from(left.as_millis()).unwrap_or(i64::MAX)
        });
        match sys::wait_signal(left.min(WATCH_MS)) {
            Some(libc::SIGTERM) => end = end.or(Some(End::Stopped)),
            None if deadline.is_some_and(|at| clock::boottime() >= at) => {
                end = end.or(Some(End::TimedOut));
            }
            _ => {}
        }
        if group.refused() > REFUSALS {
            end = end.or(Some(End::ForkedTooMuch));
        }
        if end.is_some() {
            let _ = sys::kill(init, libc::SIGKILL);
        }
        if let Ok(Some(_)) = children::reap(end.is_some()) {
            return end;
        }
    }
}
