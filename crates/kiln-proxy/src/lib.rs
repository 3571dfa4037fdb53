//! The proxy process: hyper on both sides, one single-threaded runtime for each worker, one routing table for all.
//!
//! What a request meets, in order: [`accept`] accepts its connection, [`forward`] routes it by the present
//! [`table`], [`pool`] has a connection to the instance, [`flight`] is what is known of it until it is over. The
//! [`control`] thread takes tables from controllers, saves them, publishes them, and says when drains are over.

#![allow(clippy::disallowed_methods)] // the proxy is an edge: it reads the clock and hands it to kiln-pool
#![warn(clippy::let_underscore_must_use, clippy::too_many_lines)]

mod accept;
mod admission;
mod answer_body;
mod connection;
mod control;
mod controllers;
mod counters;
mod flight;
mod forward;
mod headers;
mod listening;
mod log;
mod names;
mod outgoing;
mod pool;
mod privileges;
mod process;
mod refusal;
mod request_body;
mod saved;
mod slots;
mod table;
mod tunnel;
mod worker;
mod workers;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use process::{run, run_with};

use kiln_supervise::handoff::HandoffError;

/// How to run a proxy.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// The data root. `run` and `proxy` in it are used.
    pub root: PathBuf,
    /// Who the proxy is once it has opened its files. Not 0.
    pub uid: u32,
    pub gid: u32,
    /// Threads that serve. 0: one for each processor that this process may use.
    pub workers: usize,
}

/// How long each stage of a request may take, and how much it may hold. Times are kept to a quarter of a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// Bytes of a request's head, and the most of a body that is buffered on either side.
    pub head_bytes: usize,
    pub connect: Duration,
    /// From the last byte of a request to the head of its answer; then 504.
    pub answer: Duration,
    /// Between two pieces of a body, either way. Not for `text/event-stream`, where silence is usual.
    pub body: Duration,
    /// A client's connection without a request.
    pub keep_alive: Duration,
    /// Clients' connections, over all workers; more wait in the listening socket's queue.
    pub connections: usize,
    /// After `Retire`: when idle connections of clients are closed.
    pub retire_idle: Duration,
    /// After `Retire`: when what is still in flight is cut.
    pub retire: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            head_bytes: 64 * 1024,
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(60),
            body: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            connections: 32 * 1024,
            retire_idle: Duration::from_secs(5),
            retire: Duration::from_secs(300),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("can't {action} {}: check that it is writable and the disk is not full", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the supervisor can't be asked for the listening sockets")]
    Supervisor(#[from] HandoffError),
    #[error("the proxy does not run as root: give it a uid and gid of its own")]
    Root,
    #[error("can't give up privileges ({step}): start the proxy as root")]
    Privileges {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("can't install the system call filter: the kernel needs CONFIG_SECCOMP_FILTER")]
    Seccomp(#[source] seccompiler::Error),
    #[error("can't build the system call filter for this processor")]
    Filter(#[source] seccompiler::BackendError),
    #[error("can't start {what}")]
    Start {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("a worker thread failed: {0}; the supervisor starts the proxy again")]
    Worker(String),
}
