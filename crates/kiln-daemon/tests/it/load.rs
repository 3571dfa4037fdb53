//! Constant load from several threads; everything that is not a whole 2xx answer of a release that may serve is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::client;

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) served: Arc<AtomicU64>,
    lost: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let lost = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..4)
            .map(|worker| {
                let (stop, served, lost) =
                    (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&lost));
                std::thread::spawn(move || {
                    let mut number = 0_u64;
                    while !stop.load(Ordering::SeqCst) {
                        number += 1;
                        let echo = format!("{worker}-{number}").into_bytes();
                        let (method, path) = match number % 8 {
                            0 => ("GET", "/slow"),
                            1 | 3 | 5 => ("POST", "/echo"),
                            _ => ("GET", "/"),
                        };
                        match client::http(address, method, path, &echo) {
                            Ok(answer)
                                if answer.status == 200
                                    && (path != "/echo" || answer.body == echo) =>
                            {
                                served.fetch_add(1, Ordering::SeqCst);
                            }
                            Ok(answer) => {
                                let body = String::from_utf8_lossy(&answer.body).into_owned();
                                lost.lock()
                                    .unwrap()
                                    .push(format!("{path}: {} {body}", answer.status));
                            }
                            Err(error) => lost.lock().unwrap().push(format!("{path}: {error}")),
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            served,
            lost,
            threads,
        }
    }

    /// How many were served, and what was lost.
    pub(crate) fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let lost = self.lost.lock().unwrap().clone();
        (self.served.load(Ordering::SeqCst), lost)
    }
}
