//! The loop of one serving thread: it accepts on its own copy of each listening descriptor, serves each connection by a task
//! of its own runtime, and looks four times a second at what takes too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kiln_pool::Moment;
use kiln_supervise::handoff::SocketName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, LocalSet};

use super::Limits;
use super::connection::{ClientSide, ClientStream};
use super::flight::{EndReason, Flight};
use super::forward;
use super::log::say;
use super::pool::Pool;
use super::table::Shared;
use super::tunnel::Tunnel;
use super::worker::{Retired, Worker};
use super::workers::ToWorker;

/// How exactly limits are kept.
const SWEEP: Duration = Duration::from_millis(250);
/// Out of descriptors or memory: what ends meanwhile gives some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Its requests' end, when the process was told to end quickly.
const QUICK: Duration = Duration::from_secs(5);

/// Serves until it was told to retire and nothing is left.
pub(super) fn run(
    shared: Arc<Shared>,
    limits: Limits,
    connections: usize,
    seed: u64,
    inbox: mpsc::UnboundedReceiver<ToWorker>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let worker = Rc::new(Worker {
        shared,
        limits,
        pool: Rc::new(Pool::default()),
        flights: Rc::default(),
        tunnels: Rc::default(),
        clients: RefCell::default(),
        room: Arc::new(Semaphore::new(connections)),
        retired: Cell::new(None),
        random_state: Cell::new(seed | 1),
    });
    LocalSet::new().block_on(&runtime, worker.work(inbox));
    Ok(())
}

impl Worker {
    async fn work(self: Rc<Self>, mut inbox: mpsc::UnboundedReceiver<ToWorker>) {
        let mut accepting: HashMap<SocketName, JoinHandle<()>> = HashMap::new();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = sweep.tick() => self.sweep(),
                message = inbox.recv() => match message {
                    Some(ToWorker::Listen { listeners, done }) => {
                        // Nobody waits for the answer only if the process ends.
                        drop(done.send(self.listen(&mut accepting, listeners)));
                    }
                    Some(ToWorker::Forget { epochs }) => self.pool.forget(&epochs),
                    Some(ToWorker::EndTunnels { epoch, until }) => self.end_tunnels(|tunnel| tunnel.is_at(epoch), until),
                    Some(ToWorker::KeepTunnels { epoch }) => {
                        for tunnel in self.tunnels.borrow().iter().filter(|tunnel| tunnel.is_at(epoch)) {
                            tunnel.keep();
                        }
                    }
                    Some(ToWorker::Cut { epoch }) => self.cut(|flight| flight.is_at(epoch), EndReason::Drain),
                    Some(ToWorker::Retire { quickly }) => self.retire(&mut accepting, quickly),
                    // The control thread is gone: nothing can be decided any more.
                    None => return,
                },
            }
            if self.is_retiring() && self.is_empty() {
                return;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.clients.borrow().is_empty()
            && self.flights.borrow().is_empty()
            && self.tunnels.borrow().is_empty()
    }

    fn listen(
        self: &Rc<Self>,
        accepting: &mut HashMap<SocketName, JoinHandle<()>>,
        listeners: Vec<(SocketName, Arc<OwnedFd>)>,
    ) -> io::Result<()> {
        accepting.retain(|name, task| {
            let stays = listeners.iter().any(|(wanted, _)| wanted == name);
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, descriptor) in listeners {
            if accepting.contains_key(&name) || self.is_retiring() {
                continue;
            }
            let listener = std::net::TcpListener::from(descriptor.try_clone()?);
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            accepting.insert(
                name,
                tokio::task::spawn_local(Rc::clone(self).accept(listener, name)),
            );
        }
        Ok(())
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, name: SocketName) {
        loop {
            // Where there is no room, connections wait in the listening socket's queue.
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(address) = destination(&stream, name) else {
                        continue;
                    };
                    let client_side = ClientSide::new(&self.shared, peer.ip(), address);
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        worker.connection(stream, client_side).await;
                        drop(room);
                    });
                    // The other workers may have the next one.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    say(&format!("can't accept on {name}: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Rc<Self>, stream: TcpStream, client_side: Arc<ClientSide>) {
        // Without it, small writes wait for acknowledgements; a stream that can't be told so still works.
        drop(stream.set_nodelay(true));
        let slot = self.clients.borrow_mut().insert(Arc::clone(&client_side));
        let stream = TokioIo::new(ClientStream {
            stream,
            client_side: Arc::clone(&client_side),
        });
        let service = {
            let (worker, client_side) = (Rc::clone(&self), Arc::clone(&client_side));
            service_fn(move |request| {
                forward::serve(Rc::clone(&worker), Arc::clone(&client_side), request)
            })
        };
        let mut builder = http1::Builder::new();
        // Head and idle times are the sweep's.
        builder
            .header_read_timeout(None)
            .max_header_size(self.limits.head_bytes)
            .max_buf_size(self.limits.head_bytes.max(8192));
        let mut connection =
            std::pin::pin!(builder.serve_connection(stream, service).with_upgrades());
        poll_fn(|context| {
            if client_side.is_ended(context) {
                return Poll::Ready(());
            }
            // What went wrong was answered or counted where it did.
            connection.as_mut().poll(context).map(drop)
        })
        .await;
        self.clients.borrow_mut().remove(slot);
    }

    fn sweep(&self) {
        self.shared.tick();
        let now = self.shared.coarse_now().0;
        self.pool.sweep(now);
        let retired = self.retired.get();
        for client_side in self.clients.borrow().iter() {
            client_side.sweep(
                now,
                &self.limits,
                retired.map(|retired| (retired.at, retired.idle)),
            );
        }
        for flight in self.flights.borrow().iter() {
            flight.sweep(now, &self.limits);
        }
        for tunnel in self.tunnels.borrow().iter() {
            tunnel.sweep(now);
        }
        if retired.is_some_and(|retired| now >= retired.cut_at) {
            self.cut(|_| true, EndReason::Retire);
        }
    }

    fn cut(&self, is_meant: impl Fn(&Flight) -> bool, end_reason: EndReason) {
        for flight in self
            .flights
            .borrow()
            .iter()
            .filter(|flight| is_meant(flight))
        {
            flight.end(end_reason);
        }
    }

    fn end_tunnels(&self, is_meant: impl Fn(&Tunnel) -> bool, until: Moment) {
        let now = self.shared.coarse_now();
        let half = usize::try_from(until.since(now).as_millis() / 2).unwrap_or(usize::MAX);
        for tunnel in self
            .tunnels
            .borrow()
            .iter()
            .filter(|tunnel| is_meant(tunnel))
        {
            let early = self.random(half.saturating_add(1)) as u64;
            tunnel.end_at(until.0.saturating_sub(early));
        }
    }

    fn retire(&self, accepting: &mut HashMap<SocketName, JoinHandle<()>>, quickly: bool) {
        for (_, task) in accepting.drain() {
            task.abort();
        }
        self.shared.tick();
        let now = self.shared.coarse_now();
        let (idle, cut) = if quickly {
            (Duration::ZERO, QUICK)
        } else {
            (self.limits.retire_idle, self.limits.retire)
        };
        let cut_at = now.plus(cut);
        self.retired.set(Some(Retired {
            at: now.0,
            idle,
            cut_at: cut_at.0,
        }));
        self.end_tunnels(|_| true, if quickly { now } else { cut_at });
    }
}

/// The address that the client connected to, as the table knows it.
fn destination(stream: &TcpStream, name: SocketName) -> Option<SocketAddr> {
    match name {
        SocketName::Address(address) => Some(address),
        // Redirected by the firewall; one that was not, meant nobody.
        SocketName::Services => rustix::net::sockopt::ip_original_dst(stream)
            .ok()
            .map(SocketAddr::V4),
        SocketName::NamesUdp | SocketName::NamesTcp | SocketName::ClosedNamesUdp => None,
    }
}

/// What the peer did before it was accepted (see accept(2)): the next one may be well.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock
    )
}
