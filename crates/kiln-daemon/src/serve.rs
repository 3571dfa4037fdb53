//! The controller process, from its options to its end.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_engine::{Engine, EngineOptions};
use kiln_oci::Store;
use std::os::unix::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::api::{self, Api};
use crate::engines::local::LocalEngine;
use crate::journal::{Journal, JournalError, keep_small};
use crate::listeners::Listeners;
use crate::owner::{Input, Owner};
use crate::proxies;

const MEND_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The data root.
    pub root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("the data root {path} can't be used: it has to be a folder that root can write")]
    Root {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another controller runs on {path}: `kiln status` asks it, `kiln down` ends it")]
    Running { path: PathBuf },
    #[error("the journal can't be used")]
    Journal(#[from] JournalError),
    #[error("the store can't be used")]
    Store(#[from] kiln_oci::StoreError),
    #[error("the engine can't be used")]
    Engine(#[from] kiln_engine::EngineError),
    #[error("the socket {path} can't be opened")]
    Socket {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the controller's event loop can't be started")]
    Runtime(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. Instances and proxies go on without it.
pub fn serve(options: &DaemonOptions) -> Result<(), DaemonError> {
    let root = &options.root;
    let _lock = take_root(root)?;
    let (journal, recovered) = Journal::open(&root.join("journal.db"))?;
    // What it uses is in the journal: a session would last as long as the controller.
    let store = Store::open(root)?.without_session();
    let engine = Engine::open(EngineOptions { root: root.clone() })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let served = runtime.block_on(async move {
        let (inputs, incoming) = mpsc::unbounded_channel();
        let listener = open_socket(&root.join("run/kiln.sock"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Runtime)?;
        let ending = inputs.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = ending.send(Input::Terminate);
        });
        let hears = inputs.clone();
        let engine = LocalEngine::new(engine, store, move |observation| {
            drop(hears.send(Input::Observed(observation)));
        });
        let listeners = Listeners::new(root);
        let reader = journal.reader();
        let mending = engine.clone();
        let mut owner = Owner::new(root, journal, recovered, engine, listeners, inputs.clone());
        owner.resume();
        tokio::spawn(proxies::find(root.join("run/proxy"), inputs.clone()));
        let writer = inputs.clone();
        let tell = move |upkeep| writer.send(Input::Journal(upkeep)).is_ok();
        tokio::spawn(keep_small(reader.clone(), tell));
        tokio::spawn(mend(mending.engine().clone(), inputs.clone()));
        let engine = mending.engine().clone();
        api::start(listener, Api::new(inputs, reader, engine)).map_err(DaemonError::Runtime)?;
        owner.run(incoming).await;
        Ok(())
    });
    // What the engine is doing at this moment goes on in the shims; the next controller sees how it ended.
    runtime.shutdown_background();
    served
}

/// Firewall tools of the host flush everything when they start again; and instances that fail leave logs.
async fn mend(engine: Engine, inputs: mpsc::UnboundedSender<Input>) {
    let mut tick = tokio::time::interval(MEND_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !inputs.is_closed() {
        tick.tick().await;
        let engine = engine.clone();
        let mended = tokio::task::spawn_blocking(move || {
            engine.forget_logs();
            engine.mend_network()
        });
        if let Ok(mended) = mended.await {
            let _ = inputs.send(Input::Mended(mended));
        }
    }
}

/// The root is ours for as long as the file is open.
fn take_root(root: &Path) -> Result<File, DaemonError> {
    let failed = |source| DaemonError::Root {
        path: root.to_owned(),
        source,
    };
    std::fs::create_dir_all(root.join("run")).map_err(failed)?;
    std::fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(failed)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(root.join("run/controller.lock"))
        .map_err(failed)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::Running {
            path: root.to_owned(),
        }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn open_socket(path: &Path) -> Result<UnixListener, DaemonError> {
    let failed = |source| DaemonError::Socket {
        path: path.to_owned(),
        source,
    };
    // The lock says that nobody listens on it any more.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
