//! The HTTP API on the unix socket `ROOT/run/kiln.sock`, mode 0600. What each path means is said in [`kiln_model::api`].
//!
//! It has a thread of its own. What changes something, or shows the present state, is a [`Call`](crate::owner::Call) to
//! the owner; history, events and logs are read beside it.
//!
//! No reader can hold anybody up or fill the memory: a stream holds a bounded number of lines. What happens to a reader that
//! does not keep up depends on what it reads:
//!
//! | Stream | Rule |
//! |---|---|
//! | a rollout's progress ([`crate::progress`]) | old steps are left out, with a mark; outcomes never |
//! | logs that are followed ([`logs`]) | lines are left out, with a mark |
//! | events ([`events`]), logs that are not followed | it is waited for: they are read from the disk |

mod auth;
mod calls;
mod error;
mod events;
mod extract;
mod logs;
mod router;
mod stream;

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kiln_engine::Engine;
use kiln_model::api::ErrorCode;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use self::error::Refused;
use crate::journal::Reader;
use crate::owner::Input;

/// How long to wait after an error of `accept` that is not about one connection: descriptors have run out, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections at once. Further ones wait in the socket's queue, so that callers never use up the controller's descriptors.
const CONNECTIONS: usize = 256;
/// Streams of logs and events at once. They last, so they leave room for the calls: also the supervisor asks here whether the
/// controller lives.
const READERS: usize = 192;
/// A connection on which no request comes within this time is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the API answers from.
#[derive(Clone)]
pub(crate) struct Api {
    inputs: mpsc::UnboundedSender<Input>,
    reader: Reader,
    /// Where logs are.
    engine: Engine,
    room: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(
        inputs: mpsc::UnboundedSender<Input>,
        reader: Reader,
        engine: Engine,
    ) -> Self {
        Self {
            inputs,
            reader,
            engine,
            room: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// A place for a stream that lasts, for as long as it is kept.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Refused> {
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let message = format!(
                "{READERS} readers of logs and events are served already: end one of them, or try again later"
            );
            Refused::new(ErrorCode::Unavailable, message)
        })
    }
}

/// Serves for as long as the owner listens, on a thread of its own.
pub(crate) fn start(listener: StdListener, api: Api) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serve = move || {
        runtime.block_on(async move {
            let ended = api.inputs.clone();
            match UnixListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = accept(listener, router::router(api)) => {}
                    () = ended.closed() => {}
                },
                Err(error) => eprintln!("kiln: the API's socket can't be used: {error}"),
            }
        });
    };
    std::thread::Builder::new()
        .name("api".to_owned())
        .spawn(serve)?;
    Ok(())
}

async fn accept(listener: UnixListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                eprintln!("kiln: the API can't accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The client went away before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

async fn connection(stream: UnixStream, router: Router) {
    let Ok(actor) = auth::actor(&stream) else {
        return;
    };
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(actor.clone());
        router.call(request)
    });
    // A client that goes away in the middle is no concern of ours.
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
