//! What a supervisor leaves for the next one, and how that finds it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_fs::{ProcessId, is_locked, read_optional, replace};
use rustix::process::Signal;

use super::child::Child;
use super::handoff::Line;
use super::say;
use super::state::{Connection, Keeper, Noted};

/// How long an adopted proxy has to give its descriptors, before the controller starts without.
const ADOPTION: Duration = Duration::from_secs(3);

impl Keeper {
    /// Finds what an earlier supervisor left running.
    pub(super) fn adopt(&mut self) {
        let noted = self.noted_before();
        self.controller = noted.controller.as_ref().and_then(adopted);
        let mut proxies: Vec<Child> = living_proxies(&self.path("run/proxy"))
            .into_iter()
            .filter_map(|pid| Child::watch(pid).ok().flatten())
            .collect();
        proxies.sort_by_key(|child| child.id().start_time);
        let current = proxies
            .iter()
            .position(|child| Some(child.id()) == noted.proxy.as_ref())
            .or_else(|| proxies.len().checked_sub(1));
        self.proxy = current.map(|index| proxies.remove(index));
        if let Some(proxy) = &mut self.proxy {
            proxy.is_ready = true;
        }
        for other in proxies {
            other.signal(Signal::TERM);
            self.retiring.push(other);
        }
        if let Some(child) = &self.controller {
            say(&format!("adopted the controller, pid {}", child.pid()));
        }
        let Some(proxy) = &self.proxy else { return };
        let pid = proxy.pid();
        say(&format!("adopted the proxy, pid {pid}"));
        match UnixStream::connect(self.path(&format!("run/proxy/{pid}.adopt"))) {
            Ok(stream) if stream.set_nonblocking(true).is_ok() => {
                self.connections.push(Connection {
                    line: Line::new(stream),
                    waits: None,
                });
                self.adopting_until = Some(Instant::now() + ADOPTION);
            }
            _ => {
                say(&format!(
                    "the proxy, pid {pid}, can't be asked for its descriptors: it is replaced"
                ));
                proxy.signal(Signal::TERM);
                self.retiring.extend(self.proxy.take());
            }
        }
    }

    /// Whom the supervisor before wrote down. Where that can't be read, the controller is started anew, and the lock of a
    /// living one keeps the new one out until it ends.
    fn noted_before(&self) -> Noted {
        let path = self.path("run/supervise.json");
        let noted = match read_optional(&path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Ok(None) => return Noted::default(),
            Err(error) => Err(error),
        };
        noted.unwrap_or_else(|error| {
            say(&format!("can't read {}: {error}", path.display()));
            Noted::default()
        })
    }

    /// Writes down whom the next supervisor is to adopt.
    pub(super) fn note(&mut self) {
        let noted = Noted {
            controller: self.controller.as_ref().map(|child| child.id().clone()),
            proxy: self.proxy.as_ref().map(|child| child.id().clone()),
        };
        if noted == self.noted {
            return;
        }
        let path = self.path("run/supervise.json");
        let written = serde_json::to_vec(&noted)
            .map_err(io::Error::from)
            .and_then(|bytes| replace(&path, &bytes));
        match written {
            Ok(()) => self.noted = noted,
            Err(error) => say(&format!("can't write {}: {error}", path.display())),
        }
    }
}

fn adopted(id: &ProcessId) -> Option<Child> {
    Child::adopt(id).ok().flatten()
}

/// Proxies hold the lock of `PID.lock` while they live.
fn living_proxies(folder: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry
                .file_name()
                .to_str()?
                .strip_suffix(".lock")?
                .parse()
                .ok()?;
            is_locked(&entry.path()).ok()?.then_some(pid)
        })
        .collect()
}
