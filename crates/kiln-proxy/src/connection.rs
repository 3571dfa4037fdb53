//! A client's connection below HTTP: what phase it is in, the bytes of the head that is being read, and how it ends.
//!
//! Shared between hyper, which owns the stream, and the worker's sweep, which closes what takes too long.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Limits;
use super::headers::ambiguous_framing;
use super::log::say;
use super::table::Shared;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;
/// No HTTP any more.
const TUNNEL: u8 = 3;

/// Atomics and a mutex only because hyper asks its streams to be `Send`: one thread uses them.
pub(super) struct ClientSide {
    shared: Arc<Shared>,
    pub(super) peer: IpAddr,
    /// The listener it came by.
    pub(super) listen: SocketAddr,
    phase: AtomicU8,
    /// When the phase began.
    since: AtomicU64,
    head: Mutex<Vec<u8>>,
    /// To be closed with a reset: what was sent is not whole.
    reset: AtomicBool,
    ended: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl ClientSide {
    pub(super) fn new(shared: &Arc<Shared>, peer: IpAddr, listen: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            peer,
            listen,
            phase: AtomicU8::new(IDLE),
            since: AtomicU64::new(shared.coarse_now().0),
            head: Mutex::new(Vec::new()),
            reset: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            waker: Mutex::new(None),
        })
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Relaxed);
        self.since.store(self.shared.coarse_now().0, Relaxed);
    }

    /// A whole head was read. `Err`: why its framing is refused. A head that came with the request before it
    /// (pipelined) was not seen here; for that one hyper's own rule holds: chunked wins, the length is dropped.
    pub(super) fn request_begins(&self, has_body: bool) -> Result<(), &'static str> {
        self.enter(REQUEST);
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let ambiguous = if has_body {
            ambiguous_framing(&head)
        } else {
            None
        };
        head.clear();
        ambiguous.map_or(Ok(()), Err)
    }

    pub(super) fn request_ended(&self) {
        self.enter(IDLE);
    }

    pub(super) fn tunnel_begins(&self) {
        self.enter(TUNNEL);
    }

    /// The client must see that its answer is not whole, also where the end of the connection would mean its end.
    pub(super) fn reset_at_end(&self) {
        self.reset.store(true, Relaxed);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Relaxed);
        if let Some(waker) = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            waker.wake();
        }
    }

    pub(super) fn abort(&self) {
        self.reset_at_end();
        self.end();
    }

    pub(super) fn is_ended(&self, context: &Context<'_>) -> bool {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
        self.ended.load(Relaxed)
    }

    /// `retired`: since when no new request is wanted, and for how long an idle connection stays nevertheless.
    pub(super) fn sweep(&self, now: u64, limits: &Limits, retired: Option<(u64, Duration)>) {
        let since = self.since.load(Relaxed);
        let limit = match self.phase.load(Relaxed) {
            IDLE => match retired {
                Some((at, idle)) => {
                    let waited = now.saturating_sub(since.max(at));
                    if u128::from(waited) >= idle.as_millis() {
                        self.end();
                    }
                    return;
                }
                None => limits.keep_alive,
            },
            HEAD => limits.head,
            _ => return,
        };
        if u128::from(now.saturating_sub(since)) > limit.as_millis() {
            self.end();
        }
    }
}

/// The stream as hyper gets it.
pub(super) struct ClientStream {
    pub(super) stream: TcpStream,
    pub(super) client_side: Arc<ClientSide>,
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        let phase = self.client_side.phase.load(Relaxed);
        if matches!(phase, IDLE | HEAD) && !read.is_empty() {
            if phase == IDLE {
                self.client_side.enter(HEAD);
            }
            // Bounded by hyper's own limit on a head, at which it answers 431.
            self.client_side
                .head
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client_side.reset.load(Relaxed) {
            // An orderly end would look like a whole answer.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.client_side.reset.load(Relaxed) {
            // On failure it ends in order, and the framing of the answer still tells all but HTTP/1.0 clients.
            let linger = Some(Duration::ZERO);
            if let Err(error) = rustix::net::sockopt::set_socket_linger(&self.stream, linger) {
                say(&format!("can't reset a client's connection: {error}"));
            }
        }
    }
}
