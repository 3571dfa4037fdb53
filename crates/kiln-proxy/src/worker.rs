//! One thread that serves: its own runtime, its own connections to instances, and its own copy of each listening
//! descriptor. What is shared with the others is the table and the counts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kiln_model::Timestamp;
use kiln_pool::Moment;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use super::Limits;
use super::connection::{ClientStream, Wire};
use super::flight::{Fate, Flight, Slots};
use super::forward;
use super::pool::Pool;
use super::table::{LiveRoute, Shared};
use super::tunnel::Tunnel;
use kiln_supervise::handoff::SocketName;

/// How exactly limits are kept.
const SWEEP: Duration = Duration::from_millis(250);
/// Out of descriptors or memory: what ends meanwhile gives some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Its requests' end, when the process was told to end quickly.
const QUICK: Duration = Duration::from_secs(5);
/// Between two lines about the same trouble.
const SAY_AGAIN_MS: u64 = 5_000;

/// From the control thread.
pub(super) enum ToWorker {
    /// Accept on these and on no others. Answered when it is so.
    Listen {
        listeners: Vec<(SocketName, Arc<OwnedFd>)>,
        done: oneshot::Sender<Result<(), io::Error>>,
    },
    /// These instances get no more requests: their idle connections go.
    Forget {
        epochs: Vec<u64>,
    },
    /// The drain of an instance begins.
    EndTunnels {
        epoch: u64,
        until: Moment,
    },
    /// A draining instance serves again.
    KeepTunnels {
        epoch: u64,
    },
    /// The drain of an instance had its time.
    Cut {
        epoch: u64,
    },
    Retire {
        quickly: bool,
    },
}

#[derive(Clone, Copy)]
struct Retired {
    at: u64,
    idle: Duration,
    cut_at: u64,
}

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) limits: Limits,
    pub(super) pool: Rc<Pool>,
    pub(super) flights: Rc<RefCell<Slots<Rc<Flight>>>>,
    pub(super) tunnels: RefCell<Slots<Rc<Tunnel>>>,
    wires: RefCell<Slots<Arc<Wire>>>,
    room: Arc<Semaphore>,
    retired: Cell<Option<Retired>>,
    dice: Cell<u64>,
}

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
        tunnels: RefCell::default(),
        wires: RefCell::default(),
        room: Arc::new(Semaphore::new(connections)),
        retired: Cell::new(None),
        dice: Cell::new(seed | 1),
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
                    Some(ToWorker::Cut { epoch }) => self.cut(|flight| flight.is_at(epoch), Fate::Drain),
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
        self.wires.borrow().is_empty()
            && self.flights.borrow().is_empty()
            && self.tunnels.borrow().is_empty()
    }

    pub(super) fn is_retiring(&self) -> bool {
        self.retired.get().is_some()
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
                    let Some(address) = meant(&stream, name) else {
                        continue;
                    };
                    let wire = Wire::new(&self.shared, peer.ip(), address);
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        worker.connection(stream, wire).await;
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

    async fn connection(self: Rc<Self>, stream: TcpStream, wire: Arc<Wire>) {
        // Without it, small writes wait for acknowledgements; a stream that can't be told so still works.
        drop(stream.set_nodelay(true));
        let slot = self.wires.borrow_mut().insert(Arc::clone(&wire));
        let stream = TokioIo::new(ClientStream {
            stream,
            wire: Arc::clone(&wire),
        });
        let service = {
            let (worker, wire) = (Rc::clone(&self), Arc::clone(&wire));
            service_fn(move |request| {
                forward::serve(Rc::clone(&worker), Arc::clone(&wire), request)
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
            if wire.is_ended(context) {
                return Poll::Ready(());
            }
            // What went wrong was answered or counted where it did.
            connection.as_mut().poll(context).map(drop)
        })
        .await;
        self.wires.borrow_mut().remove(slot);
    }

    fn sweep(&self) {
        self.shared.tick();
        let now = self.shared.coarse_now().0;
        self.pool.sweep(now);
        let retired = self.retired.get();
        for wire in self.wires.borrow().iter() {
            wire.sweep(
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
            self.cut(|_| true, Fate::Retire);
        }
    }

    fn cut(&self, is_meant: impl Fn(&Flight) -> bool, fate: Fate) {
        for flight in self
            .flights
            .borrow()
            .iter()
            .filter(|flight| is_meant(flight))
        {
            flight.end(fate);
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

    /// A number below `below`, which is not 0.
    pub(super) fn random(&self, below: usize) -> usize {
        // xorshift64*: good enough to spread load, and nothing secret is made of it.
        let mut dice = self.dice.get();
        dice ^= dice >> 12;
        dice ^= dice << 25;
        dice ^= dice >> 27;
        self.dice.set(dice);
        let scattered = dice.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16;
        usize::try_from(scattered).unwrap_or(0) % below.max(1)
    }

    pub(super) fn new_request_id(&self) -> HeaderValue {
        let id = format!("{:016x}{:08x}", self.dice.get(), self.random(1 << 32));
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }

    pub(super) fn say_fail_open(&self, route: &LiveRoute) {
        let now = self.shared.coarse_now().0.max(1);
        let before = self.shared.fail_open_said.load(SeqCst);
        let is_due = before == 0 || now.saturating_sub(before) >= SAY_AGAIN_MS;
        if is_due
            && self
                .shared
                .fail_open_said
                .compare_exchange(before, now, SeqCst, SeqCst)
                .is_ok()
        {
            say(&format!(
                "every instance of {} failed of late: requests go to the least bad",
                route.service
            ));
        }
    }
}

/// The address that the client connected to, as the table knows it.
fn meant(stream: &TcpStream, name: SocketName) -> Option<SocketAddr> {
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

/// For what people and other processes read. Limits go by [`Shared::coarse_now`].
pub(super) fn wall_clock() -> Timestamp {
    let since = kiln_fs::clock::wall();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// To the proxy's own log. A log that is gone must not end it.
pub(super) fn say(message: &str) {
    let at = wall_clock().rfc3339();
    drop(writeln!(io::stderr(), "kiln proxy: {at} {message}"));
}
