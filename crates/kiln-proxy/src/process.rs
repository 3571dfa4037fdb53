//! How the process starts: everything that needs root first, then root is given up, then threads, then service.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_fs::{LockFile, is_locked};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use super::accept;
use super::control::{Control, Sockets};
use super::log::say;
use super::saved::Saved;
use super::table::Shared;
use super::workers::Workers;
use super::{Limits, ProxyError, ProxyOptions, names, privileges};
use kiln_supervise::handoff::Client;

/// The whole proxy process: serves until it is told to retire. Call it from a process of one thread.
pub fn run(options: ProxyOptions) -> Result<(), ProxyError> {
    run_with(options, Limits::default())
}

/// [`run`], with other limits than the usual ones.
pub fn run_with(options: ProxyOptions, limits: Limits) -> Result<(), ProxyError> {
    let ProxyOptions {
        root,
        uid,
        gid,
        workers,
    } = options;
    if uid == 0 || gid == 0 {
        return Err(ProxyError::Root);
    }
    raise_descriptor_limit();
    let own = OwnFiles::open(&root, uid, gid)?;
    let saved_path = root.join("proxy");
    let saved = Saved::new(folder(&saved_path, uid, gid)?, saved_path.clone())?;
    hand_over(&saved_path, uid, gid)?;
    let loaded = saved.load();
    let supervisor = Client::connect(&root)?;
    privileges::give_up(uid, gid)?;

    let (ejections, ejected) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::new(ejections));
    let workers = start_workers(&shared, &limits, workers)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ProxyError::Start {
            what: "the control runtime",
            source,
        })?;
    let OwnFiles {
        folder,
        names,
        control,
        adopt,
        lock: _lock,
        predecessor,
    } = own;
    let ended = runtime.block_on(async {
        let sockets = Sockets { control, adopt };
        Control::new(shared, workers, saved, supervisor, ejected)
            .run(loaded, sockets, predecessor)
            .await
    });
    for name in names {
        // One that stays is removed by the next proxy.
        match rustix::fs::unlinkat(&folder, name.as_str(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => say(&format!("can't remove {name}: {error}")),
        }
    }
    ended
}

/// What others find this process by: `PID.lock` (locked while it lives), `PID.sock` (for controllers) and
/// `PID.adopt` (for the next supervisor).
struct OwnFiles {
    folder: OwnedFd,
    names: [String; 3],
    control: UnixListener,
    adopt: UnixListener,
    lock: LockFile,
    /// Another proxy lives.
    predecessor: bool,
}

impl OwnFiles {
    fn open(root: &Path, uid: u32, gid: u32) -> Result<Self, ProxyError> {
        let path = root.join("run/proxy");
        let descriptor = folder(&path, uid, gid)?;
        let predecessor = sweep_dead(&path);
        let pid = std::process::id();
        let names = ["lock", "sock", "adopt"].map(|kind| format!("{pid}.{kind}"));
        let [lock_name, control_name, adopt_name] = &names;
        let lock_path = path.join(lock_name);
        let fail = |source| ProxyError::File {
            action: "lock",
            path: lock_path.clone(),
            source,
        };
        let lock = LockFile::try_take(&lock_path).map_err(fail)?;
        let lock = lock.ok_or_else(|| fail(io::ErrorKind::WouldBlock.into()))?;
        Ok(Self {
            control: listen(&path.join(control_name))?,
            adopt: listen(&path.join(adopt_name))?,
            folder: descriptor,
            names,
            lock,
            predecessor,
        })
    }
}

fn listen(path: &Path) -> Result<UnixListener, ProxyError> {
    let bound = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bound().map_err(|source| ProxyError::File {
        action: "listen on",
        path: path.to_owned(),
        source,
    })
}

/// Removes what killed proxies left. `true`: one that lives was found.
fn sweep_dead(folder: &Path) -> bool {
    let paths = || {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let is_alive = |path: &Path| is_locked(&path.with_extension("lock")).unwrap_or(true);
    let is_lock = |path: &Path| path.extension().is_some_and(|kind| kind == "lock");
    let remove = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            say(&format!("can't remove {}: {error}", path.display()));
        }
        _ => {}
    };
    let mut lives = false;
    for path in paths() {
        let alive = is_alive(&path);
        lives |= alive;
        // The lock goes last: without it, nothing says that the others are of the dead.
        if !alive && !is_lock(&path) {
            remove(&path);
        }
    }
    for path in paths().filter(|path| is_lock(path)) {
        if !is_alive(&path) {
            remove(&path);
        }
    }
    lives
}

/// Makes the folder if it isn't there, and gives it to the user that the proxy will be.
fn folder(path: &Path, uid: u32, gid: u32) -> Result<OwnedFd, ProxyError> {
    let opened = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        chown(path, Some(uid), Some(gid))?;
        Ok(rustix::fs::open(
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )?)
    };
    opened().map_err(|source| ProxyError::File {
        action: "make the folder",
        path: path.to_owned(),
        source,
    })
}

/// The files that are in it already as well: an earlier proxy may have had another uid.
fn hand_over(folder: &Path, uid: u32, gid: u32) -> Result<(), ProxyError> {
    let fail = |path: PathBuf| {
        move |source| ProxyError::File {
            action: "change the owner of",
            path,
            source,
        }
    };
    for entry in fs::read_dir(folder).map_err(fail(folder.to_owned()))? {
        let path = entry.map_err(fail(folder.to_owned()))?.path();
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(fail(path))?;
    }
    Ok(())
}

/// Two for each request, and the usual 1024 are few.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    {
        say(&format!("can't raise the limit of open files: {error}"));
    }
}

fn start_workers(
    shared: &Arc<Shared>,
    limits: &Limits,
    count: usize,
) -> Result<Workers, ProxyError> {
    let count = match count {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let mut workers = Workers::default();
    for number in 0..count {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(
            |error| ProxyError::Start {
                what: "the random numbers",
                source: error.into(),
            },
        )?;
        let (sender, inbox) = mpsc::unbounded_channel();
        let (shared, limits) = (Arc::clone(shared), limits.clone());
        let connections = limits.connections.div_ceil(count);
        let thread = std::thread::Builder::new()
            .name(format!("worker {number}"))
            .spawn(move || {
                accept::run(shared, limits, connections, u64::from_ne_bytes(seed), inbox)
            })
            .map_err(|source| ProxyError::Start {
                what: "a worker thread",
                source,
            })?;
        workers.add(sender, thread);
    }
    let (sender, inbox) = mpsc::unbounded_channel();
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("names".to_owned())
        .spawn(move || {
            if let Err(error) = names::run(shared, inbox) {
                say(&format!("names can't be answered: {error}"));
            }
        })
        .map_err(|source| ProxyError::Start {
            what: "the name server's thread",
            source,
        })?;
    workers.set_names(sender);
    Ok(workers)
}
