//! Starts kiln on a data root, and ends it.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_model::api::{DownRequest, Status};

use crate::client::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Audience;
use crate::rollout;

const START_DEADLINE: Duration = Duration::from_secs(10);
/// After all instances have ended, two processes are left, and a proxy that closes idle connections.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// There from the start of a supervisor until `kiln down` has ended everything.
const STARTED: &str = "run/started";
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

/// Makes the root serve; true when it was this call that started it.
pub(crate) fn ensure(root: &Path, client: &Client) -> Result<bool, Failure> {
    if is_served(client)? {
        return Ok(false);
    }
    let log = prepare(root)?;
    let size = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let mut supervisor = spawn(root, &log)?;
    let begun = Instant::now();
    let mut exited = false;
    while !is_served(client)? {
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
                // It serves nothing: nothing of it may stay.
                end_child(&mut supervisor);
            }
            return Err(Failure::Start {
                root: root.to_owned(),
                log: last_lines(&text),
            });
        }
        std::thread::sleep(POLL);
    }
    // Both may live at this moment; the one that serves has its pid in the lock.
    let owner = std::fs::read_to_string(root.join("run/supervise.lock")).unwrap_or_default();
    Ok(owner.trim() == supervisor.id().to_string())
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

fn end_child(child: &mut Child) {
    let pid = rustix::process::Pid::from_child(child);
    // It is our child and not waited for, so the pid is still its own.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
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
    let outcomes = rollout::follow(lines, Audience::Person, interrupts)?;
    rollout::report(&outcomes, Audience::Person)?;
    client.order("/v1/shutdown")?;
    let begun = Instant::now();
    while is_locked(root, "run/supervise.lock")? || is_locked(root, "run/controller.lock")? {
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
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Failure::Root { path, source }),
    };
    // Shared, and let go at once when the file is closed.
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Failure::Root {
            path,
            source: errno.into(),
        }),
    }
}

/// Whether something was started on this root and never ended in order: instances outlive a supervisor, a
/// controller and a proxy that were killed.
pub(crate) fn leftovers(root: &Path) -> bool {
    root.join(STARTED).exists() || is_locked(root, "run/supervise.lock").unwrap_or(true)
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
