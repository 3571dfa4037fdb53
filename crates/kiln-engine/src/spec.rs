//! What an instance is started from.

use std::path::PathBuf;

use kiln_model::{Digest, InstanceId};
use serde::{Deserialize, Serialize};

/// Everything that an instance is started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceId,
    /// A start with a lower one than the instance was last started with is refused.
    pub generation: u64,
    /// Bottom to top.
    pub layers: Vec<LayerFile>,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; `""` is `/`.
    pub cwd: String,
    /// `""` (root), a name, `uid`, `name:group` or `uid:gid`, looked up in the image.
    pub user: String,
    /// `""` is SIGTERM.
    pub stop_signal: String,
    pub tmpfs: Vec<TmpfsSpec>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    pub pids: Option<u64>,
    pub hostname: String,
    /// An address on the root's bridge; without one there is only the loopback.
    pub network: bool,
    /// Whether it reaches anything but services.
    pub egress: bool,
    /// Where names without a dot are looked up.
    pub search: Option<String>,
    /// Of one log file; one older file of that size is kept.
    pub log_max_bytes: u64,
}

/// One EROFS file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    pub path: PathBuf,
    /// The SHA-256 of the whole file, checked on its first mount after boot.
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsSpec {
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// The instance's side of its network, moved in by the parent and still unnamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) address: std::net::Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: std::net::Ipv4Addr,
}

/// The number of the signal that ends an instance: SIGTERM where none is named.
pub(crate) fn stop_signal(name: &str) -> Option<i32> {
    match name {
        "" => Some(libc::SIGTERM),
        name => kiln_model::signal_number(name),
    }
}
