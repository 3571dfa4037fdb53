//! The root's network: a bridge with a subnet of its own, and who has which address.
//!
//! Bridge and subnet are named from the root, so that several roots live on one machine and beside other container engines.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_model::{Digest, InstanceId};
use serde::{Deserialize, Serialize};

use crate::container::Link;
use crate::netlink::Socket;
use crate::state;

const PREFIX: u8 = 22;
const ADDRESSES: u32 = 1 << (32 - PREFIX);

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the network's state {path} can't be kept: {source}")]
    State { path: PathBuf, source: io::Error },
    #[error("the bridge {name} can't be made: {source}")]
    Bridge { name: String, source: io::Error },
    #[error("every subnet below 10.0.0.0/8 that kiln tried is in use: free one of them")]
    NoSubnet,
    #[error("all {ADDRESSES} addresses of the root's subnet are in use")]
    Full,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    subnet: Ipv4Addr,
    /// The last one given: a reused address is as old as can be.
    last: u32,
    given: BTreeMap<InstanceId, Ipv4Addr>,
}

#[derive(Clone)]
pub(crate) struct Network {
    path: PathBuf,
    pub(crate) bridge: String,
    prefix_name: String,
    saved: Arc<Mutex<Saved>>,
}

impl Network {
    pub(crate) fn open(root: &Path) -> Result<Self, NetError> {
        let path = root.join("network.json");
        let hash = Digest::of(root.as_os_str().as_encoded_bytes());
        let saved = match state::read_json::<Saved>(&path) {
            Ok(Some(saved)) => saved,
            Ok(None) => Saved {
                subnet: choose(&hash)?,
                last: 1,
                given: BTreeMap::new(),
            },
            Err(source) => return Err(NetError::State { path, source }),
        };
        let short = &hash.hex()[..8];
        Ok(Self {
            path,
            bridge: format!("kiln{short}"),
            prefix_name: format!("k{}", &short[..4]),
            saved: Arc::new(Mutex::new(saved)),
        })
    }

    fn gateway_of(saved: &Saved) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(saved.subnet) + 1)
    }

    /// The bridge is there and up when this returns.
    pub(crate) fn ensure(&self) -> Result<(), NetError> {
        let failed = |source| NetError::Bridge {
            name: self.bridge.clone(),
            source,
        };
        let gateway = Self::gateway_of(&self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        Socket::open()
            .and_then(|s| s.make_bridge(&self.bridge, gateway, PREFIX))
            .map_err(failed)
    }

    /// The instance's address: the same one each time.
    pub(crate) fn give(&self, id: &InstanceId) -> Result<Link, NetError> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let gateway = Self::gateway_of(&saved);
        let base = u32::from(saved.subnet);
        let address = match saved.given.get(id) {
            Some(address) => *address,
            None => {
                let taken = |address: &Ipv4Addr| saved.given.values().any(|given| given == address);
                // Network, gateway and broadcast are nobody's.
                let (offset, address) = (1..ADDRESSES)
                    .map(|step| (saved.last + step) % ADDRESSES)
                    .filter(|offset| (2..ADDRESSES - 1).contains(offset))
                    .map(|offset| (offset, Ipv4Addr::from(base + offset)))
                    .find(|(_, address)| !taken(address))
                    .ok_or(NetError::Full)?;
                saved.last = offset;
                saved.given.insert(id.clone(), address);
                self.save(&saved)?;
                address
            }
        };
        Ok(Link {
            address,
            prefix: PREFIX,
            gateway,
        })
    }

    pub(crate) fn take_back(&self, id: &InstanceId) -> Result<(), NetError> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.given.remove(id).is_some() {
            self.save(&saved)?;
        }
        Ok(())
    }

    /// The name of the host's side of an instance's pair: 15 characters at most.
    pub(crate) fn outside(&self, id: &InstanceId) -> String {
        format!(
            "{}{}",
            self.prefix_name,
            &Digest::of(id.as_str().as_bytes()).hex()[..8]
        )
    }

    /// The names of all host sides that are there.
    pub(crate) fn outsides(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir("/sys/class/net") else {
            return Vec::new();
        };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&self.prefix_name) && *name != self.bridge)
            .collect()
    }

    pub(crate) fn delete(&self, name: &str) -> io::Result<()> {
        Socket::open()?.delete(name)
    }

    fn save(&self, saved: &Saved) -> Result<(), NetError> {
        state::write_json(&self.path, saved).map_err(|source| NetError::State {
            path: self.path.clone(),
            source,
        })
    }
}

/// A /22 below 10.64.0.0/10 that no route of this machine goes into.
fn choose(hash: &Digest) -> Result<Ipv4Addr, NetError> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes: Vec<(u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Hexadecimal in the machine's byte order.
            let number = |index: usize| {
                Some(u32::from_be(
                    u32::from_str_radix(fields.get(index)?, 16).ok()?,
                ))
            };
            Some((number(1)?, number(7)?))
        })
        .filter(|(_, mask)| *mask != 0)
        .collect();
    let seed = u32::from_be_bytes([
        hash.as_bytes()[0],
        hash.as_bytes()[1],
        hash.as_bytes()[2],
        hash.as_bytes()[3],
    ]);
    let slots = 1_u32 << (PREFIX - 10);
    let mask = u32::MAX << (32 - PREFIX);
    (0..slots)
        .map(|step| {
            u32::from(Ipv4Addr::new(10, 64, 0, 0)) + (seed.wrapping_add(step) % slots) * ADDRESSES
        })
        .find(|subnet| {
            routes
                .iter()
                .all(|(to, m)| subnet & (m & mask) != to & (m & mask))
        })
        .map(Ipv4Addr::from)
        .ok_or(NetError::NoSubnet)
}
