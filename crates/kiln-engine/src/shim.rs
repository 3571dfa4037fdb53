//! The shim: one process per instance, in a session of its own, that outlives controller and supervisor.
//!
//! It makes the container, keeps its lock, writes its log, stops it when asked with SIGTERM, and leaves a synced exit record.
//! It is started from a sealed copy of this program, so that nothing an instance does reaches the program on disk
//! (CVE-2019-5736), and it never has a second thread.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use kiln_model::{ExitReason, ExitRecord, StartFailure, StartFault, Timestamp};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Group, Hierarchy, Limits};
use crate::container::{self, Container, Link, host};
use crate::init::{AppEnd, AppStatus};
use crate::logs::{Splitter, Writer};
use crate::rootfs::{Names, Root};
use crate::seccomp::Filters;
use crate::spec::{self, InstanceSpec};
use crate::sys::{self, Fork};
use crate::{sandbox, state};

/// What the engine hands to a shim, in the instance's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimSpec {
    pub(crate) instance: InstanceSpec,
    pub(crate) folder: PathBuf,
    /// Mounted layers, bottom to top.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) cgroup: String,
    pub(crate) name_server: Option<std::net::Ipv4Addr>,
    pub(crate) bridge: String,
    /// The name of the host's side of the pair.
    pub(crate) outside: String,
    pub(crate) link: Option<Link>,
}

/// What the shim says once, on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Started(Running),
    Failed(StartFailure),
}

/// Who runs: enough to find it again and to know that it is it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) shim: i32,
    pub(crate) shim_start: u64,
    pub(crate) pid: i32,
    pub(crate) pid_start: u64,
    pub(crate) boot: String,
    pub(crate) at: Timestamp,
}

pub(crate) const SPEC: &str = "spec.json";
pub(crate) const RUNNING: &str = "running.json";
pub(crate) const EXIT: &str = "exit.json";
pub(crate) const LOCK: &str = "lock";
/// Written by whoever asks for a stop: the grace in milliseconds.
pub(crate) const GRACE: &str = "grace";

const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// To be called first in `main`, before any thread exists. Runs the hidden roles and does not come back from them.
pub fn dispatch() {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next();
    match role.as_deref().and_then(|role| role.to_str()) {
        Some("shim") => {
            let folder = arguments.next().unwrap_or_else(|| OsString::from("."));
            std::process::exit(run(Path::new(&folder)))
        }
        Some("sandbox") => {
            let spec = arguments.next().unwrap_or_default();
            std::process::exit(sandbox::role(Path::new(&spec)))
        }
        _ => {}
    }
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(0).plus(since)
}

fn run(folder: &Path) -> i32 {
    // The engine waits for the first process only; the shim itself belongs to nobody.
    match sys::fork_into(0) {
        Ok(Fork::Parent(_)) => return 0,
        Ok(Fork::Child) => {}
        Err(_) => return 1,
    }
    let _ = rustix::process::setsid();
    sys::block_all_signals();
    let mut report = std::io::stdout();
    let failed = |report: &mut std::io::Stdout, failure: StartFailure| {
        say(report, &Report::Failed(failure));
        1
    };
    let spec = match state::read_json::<ShimSpec>(&folder.join(SPEC)) {
        Ok(Some(spec)) => spec,
        Ok(None) => {
            return failed(
                &mut report,
                host("the instance's specification is gone", &"no such file"),
            );
        }
        Err(error) => {
            return failed(
                &mut report,
                host("reading the instance's specification", &error),
            );
        }
    };
    let lock = match take_lock(folder) {
        Ok(lock) => lock,
        Err(error) => return failed(&mut report, host("the instance runs already", &error)),
    };
    let made = Hierarchy::find()
        .map_err(|error| host("finding the control groups", &error))
        .and_then(|hierarchy| {
            let group = hierarchy.group(&spec.cgroup);
            let started = start(&spec, folder, &group);
            if started.is_err() {
                let _ = group.destroy();
            }
            started.map(|running| (running, group))
        });
    let (container, group) = match made {
        Ok(made) => made,
        Err(failure) => return failed(&mut report, failure),
    };
    say(&mut report, &Report::Started(container.running.clone()));
    quiet();
    let record = watch(container, &group, &spec, folder);
    let _ = group.destroy();
    if let Err(error) = state::write_json(&folder.join(EXIT), &record) {
        // The lock is free all the same: whoever looks finds an instance that was lost.
        eprintln!(
            "kiln shim: {}: the exit record can't be written: {error}",
            folder.display()
        );
    }
    drop(lock);
    0
}

fn say(report: &mut std::io::Stdout, what: &Report) {
    if let Ok(mut json) = serde_json::to_vec(what) {
        json.push(b'\n');
        let _ = report.write_all(&json);
        let _ = report.flush();
    }
}

/// The engine reads the report until its end.
fn quiet() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stdin(&null);
    }
}

fn take_lock(folder: &Path) -> std::io::Result<File> {
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

/// A container that runs.
struct Live {
    running: Running,
    init: i32,
    stdout: OwnedFd,
    stderr: OwnedFd,
    status: OwnedFd,
}

fn start(spec: &ShimSpec, folder: &Path, group: &Group) -> Result<Live, StartFailure> {
    let instance = &spec.instance;
    let filters = Filters::new(false).map_err(|error| host("the system call filter", &error))?;
    let address = spec.link.as_ref().map(|link| link.address);
    let top = folder.join("top");
    crate::rootfs::generate_top(
        &top,
        &spec.layers,
        &Names {
            hostname: &instance.hostname,
            address,
            server: spec.name_server,
            search: instance.search.as_deref(),
        },
        &instance.tmpfs,
    )
    .map_err(|error| StartFailure::new(error.fault(), error.to_string()))?;
    let target = folder.join("root");
    fs::create_dir_all(&target).map_err(|error| host("making the root's folder", &error))?;
    let limits = Limits {
        memory: instance.memory,
        cpu_millis: instance.cpu_millis,
        pids: instance.pids,
    };
    group
        .create(limits)
        .map_err(|error| host("making the control group", &error))?;
    let container = Container {
        root: Root::ReadOnly {
            layers: spec.layers.clone(),
            top,
        },
        target,
        hostname: instance.hostname.clone(),
        tmpfs: instance.tmpfs.clone(),
        mounts: Vec::new(),
        argv: instance.argv.clone(),
        env: instance.env.clone(),
        cwd: instance.cwd.clone(),
        user: instance.user.clone(),
        capabilities: Vec::new(),
        link: spec.link.clone(),
        host_network: false,
        privileged: false,
    };
    let pipe = || container::pipe().map_err(|error| host("making a pipe", &error));
    let (go_read, go_write) = pipe()?;
    let (failure_read, failure_write) = pipe()?;
    let (status_read, status_write) = pipe()?;
    let (stdout_read, stdout_write) = pipe()?;
    let (stderr_read, stderr_write) = pipe()?;
    let init = match sys::fork_into(container::NAMESPACES) {
        Err(error) => return Err(host("making the instance's namespaces", &error)),
        Ok(Fork::Child) => {
            drop((
                go_write,
                failure_read,
                status_read,
                stdout_read,
                stderr_read,
            ));
            let null = File::open("/dev/null");
            let wired = null.map_err(|_| ()).and_then(|null| {
                rustix::stdio::dup2_stdin(&null).map_err(|_| ())?;
                rustix::stdio::dup2_stdout(&stdout_write).map_err(|_| ())?;
                rustix::stdio::dup2_stderr(&stderr_write).map_err(|_| ())
            });
            drop((stdout_write, stderr_write));
            if wired.is_err() {
                sys::exit_now(126);
            }
            container::become_container(&container, &filters, go_read, failure_write, status_write)
        }
        Ok(Fork::Parent(init)) => init,
    };
    drop((
        go_read,
        failure_write,
        status_write,
        stdout_write,
        stderr_write,
    ));
    let ready = group
        .add(init)
        .map_err(|error| host("putting the instance into its control group", &error))
        .and_then(|()| connect(spec, init))
        .and_then(|()| {
            rustix::io::write(&go_write, &[1])
                .map_err(|error| host("starting the instance", &error))
                .map(|_| ())
        });
    let failure = ready.err().or_else(|| {
        let said = container::read_all(&failure_read).ok()?;
        if said.is_empty() {
            return None;
        }
        Some(
            serde_json::from_slice(&said)
                .unwrap_or_else(|error| host("starting the instance", &error)),
        )
    });
    if let Some(mut failure) = failure {
        let _ = sys::kill(init, libc::SIGKILL);
        let _ = sys::reap(true);
        if group.oom_kills() > 0 {
            failure = too_small(instance.memory);
        }
        return Err(failure);
    }
    let application = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let shim = rustix::process::getpid().as_raw_nonzero().get();
    // An application that has ended already has no pid any more; its init's is as good to name it.
    let pid = application.unwrap_or(init);
    let running = Running {
        shim,
        shim_start: state::start_time(shim).unwrap_or(0),
        pid,
        pid_start: state::start_time(pid).unwrap_or(0),
        boot: state::boot_id(),
        at: now(),
    };
    state::write_json(&folder.join(RUNNING), &running)
        .map_err(|error| host("recording the instance", &error))?;
    Ok(Live {
        running,
        init,
        stdout: stdout_read,
        stderr: stderr_read,
        status: status_read,
    })
}

pub(crate) fn too_small(limit: Option<u64>) -> StartFailure {
    let limit = limit.unwrap_or(0);
    StartFailure::new(
        StartFault::LimitTooSmall,
        format!(
            "the memory limit of {limit} bytes is too small for the instance to start: raise `resources {{ memory }}`"
        ),
    )
}

fn connect(spec: &ShimSpec, init: i32) -> Result<(), StartFailure> {
    if spec.link.is_none() {
        return Ok(());
    }
    crate::netlink::Socket::open()
        .and_then(|socket| {
            socket.delete(&spec.outside)?;
            socket.make_pair(&spec.outside, &spec.bridge, init)
        })
        .map_err(|error| {
            StartFailure::new(
                StartFault::Network,
                format!("connecting the instance to its network: {error}"),
            )
        })
}

/// Until the instance has ended: its output, requests to stop, its end.
fn watch(live: Live, group: &Group, spec: &ShimSpec, folder: &Path) -> ExitRecord {
    let Live {
        running: _,
        init,
        stdout,
        stderr,
        status,
    } = live;
    let mut log = Writer::open(folder, spec.instance.log_max_bytes).ok();
    let mut splitters = [Splitter::default(), Splitter::default()];
    let mut open = [true, true];
    let signals = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGCHLD]);
    let stop_signal = spec::stop_signal(&spec.instance.stop_signal).unwrap_or(libc::SIGTERM);
    let mut kill_at: Option<Instant> = None;
    let mut ended: Option<sys::Ended> = None;
    while ended.is_none() || open.iter().any(|open| *open) {
        let outputs = [&stdout, &stderr];
        let mut polled: Vec<PollFd<'_>> = Vec::new();
        let mut which = Vec::new();
        for (index, output) in outputs.iter().enumerate() {
            if open[index] {
                polled.push(PollFd::new(*output, PollFlags::IN));
                which.push(Some(index));
            }
        }
        if let Ok(signals) = &signals {
            polled.push(PollFd::new(signals, PollFlags::IN));
            which.push(None);
        }
        let timeout = match (kill_at, &ended, &signals) {
            (_, Some(_), _) | (_, _, Err(_)) => Some(Duration::from_millis(20)),
            (Some(at), None, _) => Some(at.saturating_duration_since(Instant::now())),
            (None, None, _) => None,
        };
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        let polled_count = poll(&mut polled, timeout.as_ref()).unwrap_or(0);
        let ready: Vec<_> = polled
            .iter()
            .zip(&which)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, which)| *which)
            .collect();
        for which in ready {
            match which {
                Some(index) => {
                    let mut chunk = [0; 16 * 1024];
                    let read = rustix::io::read(outputs[index].as_fd(), &mut chunk).unwrap_or(0);
                    let at = now().0;
                    let write = |line: &[u8], log: &mut Option<Writer>| {
                        // A full disk loses log lines, and nothing else.
                        if let Some(log) = log {
                            let _ = log.line(at, index == 1, line);
                        }
                    };
                    if read == 0 {
                        open[index] = false;
                        splitters[index].finish(|line| write(line, &mut log));
                    } else {
                        splitters[index].push(&chunk[..read], |line| write(line, &mut log));
                    }
                }
                None => {
                    while let Some(signal) = signals.as_ref().ok().and_then(sys::read_signal) {
                        if signal == libc::SIGTERM && kill_at.is_none() {
                            let _ = sys::kill(init, stop_signal);
                            kill_at = Some(Instant::now() + grace(folder));
                        }
                    }
                }
            }
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) && ended.is_none() {
            let _ = sys::kill(init, libc::SIGKILL);
        }
        while let Ok(Some((pid, how))) = sys::reap(false) {
            if pid == init {
                ended = Some(how);
            }
        }
        // What the container's processes held is closed with them; a pipe that stays open then is nobody's.
        if ended.is_some() && polled_count == 0 {
            break;
        }
    }
    let told = container::read_all(&status)
        .ok()
        .filter(|told| !told.is_empty());
    let told: Option<AppEnd> = told.and_then(|told| serde_json::from_slice(&told).ok());
    let told = told.map(|told| told.status);
    let reason = if group.oom_kills() > 0 && told != Some(AppStatus::Exited(0)) {
        ExitReason::OutOfMemory {
            limit: spec.instance.memory,
        }
    } else {
        match (told, ended) {
            (Some(AppStatus::Exited(code)), _) => ExitReason::Exited { code },
            (Some(AppStatus::Signalled(signal)), _) => ExitReason::Signalled { signal },
            (None, Some(sys::Ended::Exited(code))) => ExitReason::Exited { code },
            (None, Some(sys::Ended::Signalled(signal))) => ExitReason::Signalled { signal },
            (None, None) => ExitReason::Lost,
        }
    };
    let last_lines = log.map(|log| log.last_lines()).unwrap_or_default();
    ExitRecord {
        reason,
        at: now(),
        last_lines,
    }
}

fn grace(folder: &Path) -> Duration {
    fs::read_to_string(folder.join(GRACE))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(DEFAULT_GRACE, Duration::from_millis)
}
