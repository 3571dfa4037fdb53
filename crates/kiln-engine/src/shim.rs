//! The shim: one process per instance, in a session of its own, that outlives controller and supervisor.
//!
//! It makes the container ([`start`]), keeps its lock, writes its log, stops it when asked with SIGTERM ([`watch`]), and leaves a
//! synced exit record. It is started from a sealed copy of this program, so that nothing an instance does reaches the program on
//! disk (CVE-2019-5736), and it never has a second thread.
//!
//! What it is to run comes on its standard input, from a file in memory, because an environment may hold secrets. It says
//! once, on its standard output, how the start went.

mod start;
mod watch;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kiln_fs::LockFile;
use kiln_model::{StartFailure, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchy;
use crate::container::host;
use crate::record::{self, Running};
use crate::spec::{InstanceSpec, Link};
use crate::sys::{self, Fork};

pub(crate) const ROLE: &str = "shim";

/// What the engine hands to a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimSpec {
    pub(crate) instance: InstanceSpec,
    /// Mounted layers, bottom to top.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) cgroup: String,
    pub(crate) name_server: Option<std::net::Ipv4Addr>,
    pub(crate) bridge: String,
    /// The name of the host's side of the pair.
    pub(crate) outside: String,
    pub(crate) link: Option<Link>,
}

/// What the shim says once, on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Started(Running),
    Failed(StartFailure),
}

pub(crate) fn now() -> Timestamp {
    Timestamp(0).plus(kiln_fs::clock::wall())
}

/// The process's whole life, in the instance's folder.
pub(crate) fn role(folder: &Path) -> i32 {
    // The engine waits for the first process only; the shim itself belongs to nobody.
    match sys::fork_into(0) {
        Ok(Fork::Parent(_)) => return 0,
        Ok(Fork::Child) => {}
        Err(_) => return 1,
    }
    let _ = rustix::process::setsid();
    sys::block_all_signals();
    let (made, lock) = match begin(folder) {
        Ok(begun) => begun,
        Err(failure) => {
            say(&Report::Failed(failure));
            return 1;
        }
    };
    say(&Report::Started(made.running.clone()));
    detach();
    let group = made.group.clone();
    let exit = watch::to_the_end(made, folder);
    let _ = group.destroy();
    if let Err(error) = record::write_exit(folder, &exit) {
        // The lock is free all the same: whoever looks finds an instance that was lost.
        eprintln!(
            "kiln shim: {}: the exit record can't be written: {error}",
            folder.display()
        );
    }
    drop(lock);
    0
}

fn begin(folder: &Path) -> Result<(start::Live, LockFile), StartFailure> {
    let mut spec = Vec::new();
    std::io::stdin()
        .read_to_end(&mut spec)
        .map_err(|error| host("reading the instance's specification", &error))?;
    let spec: ShimSpec = serde_json::from_slice(&spec)
        .map_err(|error| host("reading the instance's specification", &error))?;
    let lock = LockFile::try_take(&folder.join(record::LOCK))
        .map_err(|error| host("taking the instance's lock", &error))?;
    let lock = lock.ok_or_else(|| host("starting", &"the instance runs already"))?;
    let hierarchy =
        Hierarchy::find().map_err(|error| host("finding the control groups", &error))?;
    let group = hierarchy.group(&spec.cgroup);
    match start::start(&spec, folder, &group) {
        Ok(live) => Ok((live, lock)),
        Err(failure) => {
            let _ = group.destroy();
            Err(failure)
        }
    }
}

fn say(what: &Report) {
    let mut report = std::io::stdout();
    if let Ok(mut json) = serde_json::to_vec(what) {
        json.push(b'\n');
        let _ = report.write_all(&json);
        let _ = report.flush();
    }
}

/// The engine reads the report until its end, and the specification is needed no more.
fn detach() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null.as_fd());
        let _ = rustix::stdio::dup2_stdin(null.as_fd());
    }
}
