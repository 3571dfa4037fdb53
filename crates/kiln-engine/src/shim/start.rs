//! From a specification to a container that runs.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use kiln_fs::ProcessId;
use kiln_model::{StartFailure, StartFault};
use rustix::thread::CapabilitySet;

use super::{ShimSpec, now};
use crate::cgroup::{Group, Limits};
use crate::container::{self, Container, host};
use crate::record::Running;
use crate::root::Root;
use crate::rootfs::{self, Names};
use crate::seccomp::Filters;
use crate::{spec, sys};

/// An instance that runs.
pub(super) struct Live {
    pub(super) running: Running,
    pub(super) group: Group,
    pub(super) init: i32,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// How the application ended comes from here.
    pub(super) status: OwnedFd,
    /// Readable when this process got SIGTERM or SIGCHLD.
    pub(super) signals: OwnedFd,
    pub(super) stop_signal: i32,
    /// Bytes.
    pub(super) memory: Option<u64>,
    pub(super) log_max_bytes: u64,
}

pub(super) fn start(spec: &ShimSpec, folder: &Path, group: &Group) -> Result<Live, StartFailure> {
    let instance = &spec.instance;
    let filters = Filters::new(false).map_err(|error| host("the system call filter", &error))?;
    let signals = sys::signal_descriptor(&[libc::SIGTERM, libc::SIGCHLD])
        .map_err(|error| host("waiting for signals", &error))?;
    let container = container(spec, folder)?;
    let limits = Limits {
        memory: instance.memory,
        cpu_millis: instance.cpu_millis,
        pids: instance.pids,
    };
    group
        .create(limits)
        .map_err(|error| host("making the control group", &error))?;
    let pipe = || container::pipe().map_err(|error| host("making a pipe", &error));
    let (stdout, stdout_write) = pipe()?;
    let (stderr, stderr_write) = pipe()?;
    let wire = || {
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        rustix::stdio::dup2_stdout(&stdout_write)?;
        Ok(rustix::stdio::dup2_stderr(&stderr_write)?)
    };
    let launched = container::launch(&container, &filters, group, wire, |init| {
        connect(spec, init)
    });
    let container::Launched { init, status } = launched.map_err(|failure| {
        if group.oom_kills() > 0 {
            too_small(instance.memory)
        } else {
            failure
        }
    })?;
    let running = running(init).map_err(|error| host("finding the shim itself", &error))?;
    running
        .write(folder)
        .map_err(|error| host("recording the instance", &error))?;
    Ok(Live {
        running,
        group: group.clone(),
        init,
        stdout,
        stderr,
        status,
        signals,
        stop_signal: spec::stop_signal(&instance.stop_signal).unwrap_or(libc::SIGTERM),
        memory: instance.memory,
        log_max_bytes: instance.log_max_bytes,
    })
}

fn container(spec: &ShimSpec, folder: &Path) -> Result<Container, StartFailure> {
    let instance = &spec.instance;
    let top = folder.join("top");
    let names = Names {
        hostname: &instance.hostname,
        address: spec.link.as_ref().map(|link| link.address),
        server: spec.name_server,
        search: instance.search.as_deref(),
    };
    rootfs::generate_top(&top, &spec.layers, &names, &instance.tmpfs)
        .map_err(|error| StartFailure::new(error.fault(), error.to_string()))?;
    let target = folder.join("root");
    fs::create_dir_all(&target).map_err(|error| host("making the root's folder", &error))?;
    Ok(Container {
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
        capabilities: CapabilitySet::empty(),
        link: spec.link.clone(),
        host_network: false,
        privileged: false,
    })
}

fn running(init: i32) -> std::io::Result<Running> {
    let application = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    // An application that has ended already has no pid any more; its init's is as good to name it.
    let pid = application.unwrap_or(init);
    Ok(Running::new(ProcessId::own()?, pid, now()))
}

fn too_small(limit: Option<u64>) -> StartFailure {
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
