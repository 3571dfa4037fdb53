//! From a forked child in fresh namespaces to the application: what instances and bake steps have in common.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_model::{StartFailure, StartFault};
use rustix::thread::{CapabilitySet, UnshareFlags};

use crate::cgroup::Group;
use crate::mounts::SandboxMount;
use crate::root::Root;
use crate::rootfs;
use crate::seccomp::Filters;
use crate::spec::{Link, TmpfsSpec};
use crate::sys::{self, Fork};
use crate::{children, init, netlink, rights, users};

/// The namespaces that a container is made in. That of its control groups is made later, when it is in its group: the group
/// is its root then, and nothing of the host's is seen.
const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET;

/// What the child makes of itself.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) root: Root,
    /// An empty folder of the host.
    pub(crate) target: PathBuf,
    pub(crate) hostname: String,
    pub(crate) tmpfs: Vec<TmpfsSpec>,
    pub(crate) mounts: Vec<SandboxMount>,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) capabilities: CapabilitySet,
    pub(crate) link: Option<Link>,
    /// The host's network namespace was kept.
    pub(crate) host_network: bool,
    /// Every capability, every system call, nothing hidden.
    pub(crate) privileged: bool,
}

impl Container {
    fn namespaces(&self) -> i32 {
        if self.host_network {
            NAMESPACES & !libc::CLONE_NEWNET
        } else {
            NAMESPACES
        }
    }
}

/// A container whose application was executed.
pub(crate) struct Launched {
    pub(crate) init: i32,
    /// An [`init::AppEnd`] as JSON comes from it when the application has ended.
    pub(crate) status: OwnedFd,
}

/// Starts the container in `group` and waits until its application is executed. Only from a process with one thread.
///
/// `wire`: what the child does first, to its standard streams. `connect`: what the parent does about the network of the
/// process whose id it gets.
pub(crate) fn launch(
    container: &Container,
    filters: &Filters,
    group: &Group,
    wire: impl FnOnce() -> io::Result<()>,
    connect: impl FnOnce(i32) -> Result<(), StartFailure>,
) -> Result<Launched, StartFailure> {
    let pipe = || pipe().map_err(|error| host("making a pipe", &error));
    let (go_read, go_write) = pipe()?;
    let (failure_read, failure_write) = pipe()?;
    let (status_read, status_write) = pipe()?;
    let init = match sys::fork_into(container.namespaces()) {
        Err(error) => return Err(host("making the namespaces", &error)),
        Ok(Fork::Child) => {
            drop((go_write, failure_read, status_read));
            if wire().is_err() {
                sys::exit_now(126);
            }
            become_container(container, filters, go_read, failure_write, status_write)
        }
        Ok(Fork::Parent(init)) => init,
    };
    drop((go_read, failure_write, status_write));
    let ready = group
        .add(init)
        .map_err(|error| host("entering the control group", &error))
        .and_then(|()| connect(init))
        .and_then(|()| {
            rustix::io::write(&go_write, &[1])
                .map_err(|error| host("starting the container", &error))
                .map(|_| ())
        });
    let failure = match ready {
        Err(failure) => Some(failure),
        Ok(()) => reported(&failure_read),
    };
    match failure {
        None => Ok(Launched {
            init,
            status: status_read,
        }),
        Some(failure) => {
            // It is this process's child and not waited for yet: the number is its own.
            let _ = sys::kill(init, libc::SIGKILL);
            while let Ok(Some((pid, _))) = children::reap(true) {
                if pid == init {
                    break;
                }
            }
            Err(failure)
        }
    }
}

/// What the child said before its end; `None`: nothing, since the application was executed.
fn reported(failure: &OwnedFd) -> Option<StartFailure> {
    match read_all(failure) {
        Ok(report) if report.is_empty() => None,
        Ok(report) => Some(
            serde_json::from_slice(&report)
                .unwrap_or_else(|error| host("starting the container", &error)),
        ),
        Err(error) => Some(host("starting the container", &error)),
    }
}

/// Becomes the init of a container and, in a child of its own, the application. Never returns.
///
/// `go`: a byte comes when cgroup and network are ready; its end means that the parent is gone. `failure`: a
/// [`StartFailure`] as JSON, or closed without one when the application was executed. `status`: how it ended.
fn become_container(
    container: &Container,
    filters: &Filters,
    go: OwnedFd,
    failure: OwnedFd,
    status: OwnedFd,
) -> ! {
    let mut failure = std::fs::File::from(failure);
    let result = prepare(container, go);
    let code = match result {
        Ok(()) => match sys::fork_into(0) {
            Ok(Fork::Child) => {
                drop(status);
                let failed = run(container, filters);
                report(&mut failure, &failed);
                sys::exit_now(127)
            }
            Ok(Fork::Parent(application)) => {
                drop(failure);
                init::run(application, status)
            }
            Err(error) => {
                report(&mut failure, &host("forking the application", &error));
                126
            }
        },
        Err(failed) => {
            report(&mut failure, &failed);
            126
        }
    };
    sys::exit_now(code)
}

fn report(failure: &mut std::fs::File, failed: &StartFailure) {
    if let Ok(json) = serde_json::to_vec(failed) {
        // Nobody is left to hear it when the pipe is gone.
        let _ = failure.write_all(&json);
    }
}

/// Of the machine, at this moment.
pub(crate) fn host(what: &str, error: &dyn std::fmt::Display) -> StartFailure {
    StartFailure::new(StartFault::Host, format!("{what}: {error}"))
}

fn prepare(container: &Container, go: OwnedFd) -> Result<(), StartFailure> {
    rights::die_with_parent().map_err(|error| host("tying the instance to its shim", &error))?;
    let mut byte = [0];
    match std::fs::File::from(go).read(&mut byte) {
        Ok(1) => {}
        _ => sys::exit_now(125),
    }
    sys::unshare(UnshareFlags::NEWCGROUP)
        .map_err(|error| host("making the namespace of control groups", &error))?;
    rustix::system::sethostname(container.hostname.as_bytes())
        .map_err(|error| host("setting the host name", &error))?;
    if !container.host_network {
        netlink::configure_inside(container.link.as_ref()).map_err(|error| {
            StartFailure::new(
                StartFault::Network,
                format!("configuring the network: {error}"),
            )
        })?;
    }
    rootfs::enter(
        &container.root,
        &container.target,
        &container.tmpfs,
        &container.mounts,
        container.privileged,
    )
    .map_err(|error| StartFailure::new(error.fault(), error.to_string()))
}

/// Executes the application; comes back only with the reason why it can't.
fn run(container: &Container, filters: &Filters) -> StartFailure {
    match to_application(container, filters) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

enum Never {}

fn to_application(container: &Container, filters: &Filters) -> Result<Never, StartFailure> {
    let identity = users::look_up(&container.user)
        .map_err(|error| StartFailure::new(StartFault::User, error))?;
    let cwd = if container.cwd.is_empty() {
        "/"
    } else {
        &container.cwd
    };
    let entered = std::env::set_current_dir(cwd).or_else(|error| {
        // As runc has it: one that is not there is made, where the image can be written to.
        if error.kind() != std::io::ErrorKind::NotFound || std::fs::create_dir_all(cwd).is_err() {
            return Err(error);
        }
        std::env::set_current_dir(cwd)
    });
    entered.map_err(|error| {
        StartFailure::new(
            StartFault::WorkingFolder,
            format!("the working folder `{cwd}` can't be entered in the image: {error}"),
        )
    })?;
    let mut env = container.env.clone();
    if !env.iter().any(|(name, _)| name == "PATH") {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        env.push(("PATH".to_owned(), path.to_owned()));
    }
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".to_owned(), identity.home.clone()));
    }
    let program = find(&container.argv, &env)?;
    rights::reset_limits();
    let _ = rustix::process::setsid();
    let (uid, gid, groups) = (identity.uid, identity.gid, &identity.groups);
    if container.privileged {
        rights::become_user(uid, gid, groups)
    } else {
        rights::become_user_with(container.capabilities, uid, gid, groups)
    }
    .map_err(|error| host("giving up rights", &error))?;
    rights::die_with_parent().map_err(|error| host("tying the application to its init", &error))?;
    sys::close_from_on_exec(3);
    sys::reset_signals();
    if !container.privileged {
        rights::no_new_privileges().map_err(|error| host("giving up privileges", &error))?;
        filters
            .install()
            .map_err(|error| host("installing the filter", &error))?;
    }
    let error = sys::exec(&program, &container.argv, &env);
    Err(not_executed(&program, &container.argv, &env, &error))
}

fn not_executed(
    program: &Path,
    argv: &[String],
    env: &[(String, String)],
    error: &io::Error,
) -> StartFailure {
    let program = program.display();
    let (fault, detail) = match error.raw_os_error() {
        Some(libc::ENOENT) => (
            StartFault::CommandNotFound,
            format!(
                "`{program}` can't be executed: the interpreter or loader that it names is not in the image"
            ),
        ),
        Some(libc::EACCES) => (
            StartFault::CommandNotExecutable,
            format!(
                "`{program}` is not executable for the instance's user: check its mode and owner"
            ),
        ),
        Some(libc::ENOEXEC) => (
            StartFault::CommandNotExecutable,
            format!("`{program}` is no program for this machine, and no script with `#!`"),
        ),
        Some(libc::E2BIG) => (StartFault::ArgumentsTooLarge, too_large(argv, env)),
        Some(_) => (StartFault::Host, format!("executing `{program}`: {error}")),
        // The kernel was not asked: a text of the release has a null byte.
        None => (
            StartFault::Release,
            format!("`{program}` can't be executed with these `command` and `env`: {error}"),
        ),
    };
    StartFailure::new(fault, detail)
}

/// A single text of a command or an environment: MAX_ARG_STRLEN of the kernel, with the zero byte at its end.
const LONGEST_TEXT: usize = 128 * 1024;

/// What of a release is too large for execve(2), and what to do.
fn too_large(argv: &[String], env: &[(String, String)]) -> String {
    let variable = env
        .iter()
        .find(|(name, value)| name.len() + 1 + value.len() + 1 > LONGEST_TEXT);
    if let Some((name, value)) = variable {
        return format!(
            "the variable `{name}` has {} bytes, and the kernel takes {LONGEST_TEXT} at most, its name included: make it \
             smaller in `env`, or copy a file into the image",
            value.len()
        );
    }
    if let Some(argument) = argv.iter().find(|text| text.len() + 1 > LONGEST_TEXT) {
        return format!(
            "an argument of `command` has {} bytes, and the kernel takes {LONGEST_TEXT} at most: make it smaller, or copy a file \
             into the image",
            argument.len()
        );
    }
    let size: usize = argv.iter().map(|text| text.len() + 1).sum::<usize>()
        + env
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum::<usize>();
    format!(
        "`command` and `env` have {size} bytes together, more than the kernel takes: make `env` smaller, or copy a file into the image"
    )
}

fn not_found(detail: String) -> StartFailure {
    StartFailure::new(StartFault::CommandNotFound, detail)
}

/// execvp's search, inside the image.
fn find(argv: &[String], env: &[(String, String)]) -> Result<PathBuf, StartFailure> {
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
        return Err(not_found(
            "there is no command: give the image `cmd` or the service `command`".to_owned(),
        ));
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match path.symlink_metadata() {
            Ok(_) => Ok(path),
            Err(_) => Err(not_found(format!(
                "the image has no `{name}`, which is the instance's command: add its package or copy it"
            ))),
        };
    }
    let path = env
        .iter()
        .find(|(key, _)| key == "PATH")
        .map_or("", |(_, value)| value);
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            not_found(format!(
                "the image has no `{name}` in its PATH ({path}), which is the instance's command: add its package or copy it"
            ))
        })
}

/// A pipe whose ends are closed on exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Everything that comes until the other end is closed; bounded.
pub(crate) fn read_all(descriptor: &impl AsFd) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(descriptor, &mut chunk) {
            Ok(0) => return Ok(all),
            Ok(read) => all.extend_from_slice(&chunk[..read]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if all.len() > 1 << 20 {
            return Ok(all);
        }
    }
}
