//! Starts kiln on a data root, and ends it.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_model::api::{DownRequest, Status};
use rustix::process::Signal;

use crate::client::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
use crate::{processes, rollout};

const START_DEADLINE: Duration = Duration::from_secs(10);
/// After all instances have ended, two processes are left, and a proxy that closes idle connections.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// There from the start of a supervisor until `kiln down` has ended everything.
const STARTED: &str = "run/started";
/// Held by the supervisor, which has its pid in it.
const SUPERVISOR: &str = "run/supervise.lock";
const CONTROLLER: &str = "run/controller.lock";
const POLL: Duration = Duration::from_millis(10);

pub(crate) fn is_served(client: &Client) -> Result<bool, Failure> {
    match client.get::<Status>("/v1/status") {
        Ok(_) => Ok(true),
        // It is there, and has the root.
        Err(Failure::Api(_)) => Ok(true),
        Err(Failure::NotRunning { .. } | Failure::BrokenOff) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// What an interrupted command leaves running, and how to end it.
pub(crate) fn left(root: &Path, client: &Client) -> String {
    // A root that can't be asked may run something too.
    if is_served(client).unwrap_or(true) || leftovers(root) {
        format!(
            "what runs on {} goes on running, `kiln down` ends it",
            root.display()
        )
    } else {
        format!("nothing was started on {}", root.display())
    }
}

/// How a root came to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// By this call.
    Now,
    Before,
    /// The controller ran, and had no supervisor: this call started one.
    Supervised,
}

/// Makes the root serve, with a supervisor.
pub(crate) fn ensure(root: &Path, client: &Client) -> Result<Started, Failure> {
    end_lost(root)?;
    let served = is_served(client)?;
    if served && is_supervised(root)? {
        return Ok(Started::Before);
    }
    let log = prepare(root)?;
    let size = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let mut supervisor = spawn(root, &log)?;
    let begun = Instant::now();
    let mut exited = false;
    while !(is_served(client)? && is_supervised(root)?) {
        // When another `kiln up` was quicker, ours ends and that one's serves.
        exited = exited || supervisor.try_wait().map_err(Failure::Spawn)?.is_some();
        let patience = if exited {
            START_DEADLINE / 2
        } else {
            START_DEADLINE
        };
        if begun.elapsed() > patience {
            let mut text = tail(&root.join("log/supervise.log"), size);
            text.push_str(&tail(&root.join("log/controller.log"), 0));
            if !exited {
                // It serves nothing: nothing of it may stay. What ran before it goes on.
                let signal = if served { Signal::KILL } else { Signal::TERM };
                end_child(&mut supervisor, signal);
            }
            return Err(Failure::Start {
                root: root.to_owned(),
                log: last_lines(&text),
            });
        }
        std::thread::sleep(POLL);
    }
    // Both may live at this moment; the one that serves has its pid in the lock.
    let owner = std::fs::read_to_string(root.join(SUPERVISOR)).unwrap_or_default();
    Ok(
        match (served, owner.trim() == supervisor.id().to_string()) {
            (false, true) => Started::Now,
            (true, true) => Started::Supervised,
            (_, false) => Started::Before,
        },
    )
}

/// Whether a supervisor has the root and takes connections.
pub(crate) fn is_supervised(root: &Path) -> Result<bool, Failure> {
    // The path is as `socket_path` of the supervisor's crate has it, which the bytes of a connection are of no concern to.
    Ok(is_locked(root, SUPERVISOR)?
        && UnixStream::connect(kiln_supervise::handoff::socket_path(root)).is_ok())
}

/// A controller and a supervisor whose locks were removed with `run/` can't be reached, and their successors would
/// start beside them, on the same journal. Instances go on.
fn end_lost(root: &Path) -> Result<(), Failure> {
    let holders = processes::holders(root)?;
    if holders.iter().any(|holder| holder.is_lost) {
        output::warning(&format!(
            "files of {} were removed under a kiln that runs: it is ended and started again, instances go on",
            root.join("run").display()
        ));
        processes::end(root, holders)?;
    }
    Ok(())
}

/// The root and its log folder, for root alone.
fn prepare(root: &Path) -> Result<File, Failure> {
    let failed = |source| Failure::Root {
        path: root.to_owned(),
        source,
    };
    std::fs::create_dir_all(root.join("log")).map_err(failed)?;
    std::fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(failed)?;
    File::options()
        .create(true)
        .append(true)
        .open(root.join("log/supervise.log"))
        .map_err(failed)
}

fn spawn(root: &Path, log: &File) -> Result<Child, Failure> {
    let exe = std::env::current_exe().map_err(Failure::Spawn)?;
    let (out, err) = (
        log.try_clone().map_err(Failure::Spawn)?,
        log.try_clone().map_err(Failure::Spawn)?,
    );
    Command::new(exe)
        .args(["supervise", "--new-session", "--root"])
        .arg(root)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(Failure::Spawn)
}

fn end_child(child: &mut Child, signal: Signal) {
    // It is our child and not waited for, so the pid is still its own. It may have ended meanwhile, which is what is wanted.
    if let Ok(pid) = i32::try_from(child.id())
        && let Ok(Some(process)) = kiln_fs::Process::open(pid)
    {
        let _ = process.signal(signal);
    }
    let _ = child.wait();
}

fn tail(path: &Path, from: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path)
        && file.seek(SeekFrom::Start(from)).is_ok()
    {
        // What can't be read can't be shown; the failure itself is.
        let _ = file.take(1 << 20).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown: Vec<String> = lines[lines.len().saturating_sub(20)..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect();
    shown.join("\n")
}

/// Stops every instance, then controller, proxy and supervisor. The store and the journal stay.
pub(crate) fn end(root: &Path, client: &Client, interrupts: &Interrupts) -> Result<(), Failure> {
    let request = DownRequest {
        environment: None,
        project: None,
    };
    let lines = client.post_lines("/v1/down", &request)?;
    let outcomes = rollout::follow(client, lines, Audience::Person, interrupts)?;
    rollout::report(&outcomes, Audience::Person)?;
    match client.order("/v1/shutdown") {
        // It may end before its answer is out, and its end is what was asked for: the locks say whether it came.
        Ok(()) | Err(Failure::BrokenOff) => {}
        Err(failure) => return Err(failure),
    }
    let begun = Instant::now();
    while is_locked(root, SUPERVISOR)? || is_locked(root, CONTROLLER)? {
        if begun.elapsed() > END_DEADLINE {
            return Err(Failure::NotEnded {
                root: root.to_owned(),
                seconds: END_DEADLINE.as_secs(),
            });
        }
        std::thread::sleep(POLL);
    }
    let path = root.join(STARTED);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Failure::Root { path, source }),
    }
}

fn is_locked(root: &Path, name: &str) -> Result<bool, Failure> {
    let path = root.join(name);
    kiln_fs::is_locked(&path).map_err(|source| Failure::Root { path, source })
}

/// Whether something was started on this root and never ended in order: instances outlive a supervisor, a
/// controller and a proxy that were killed.
pub(crate) fn leftovers(root: &Path) -> bool {
    // What can't be found out may be something.
    root.join(STARTED).exists()
        || is_locked(root, SUPERVISOR).unwrap_or(true)
        || processes::holders(root).is_ok_and(|holders| !holders.is_empty())
        || std::fs::read_dir(root.join("instances")).is_ok_and(|mut one| one.next().is_some())
}

/// Before the first process of kiln on this root.
pub(crate) fn mark_started(root: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Root {
        path: root.to_owned(),
        source,
    };
    std::fs::create_dir_all(root.join("run")).map_err(failed)?;
    File::create(root.join(STARTED)).map(|_| ()).map_err(failed)
}
