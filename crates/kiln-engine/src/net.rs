//! The root's network: a bridge with a subnet of its own, who has which address, and the firewall around it.
//!
//! Bridge, subnet and firewall table are named from the root, so that several roots live on one machine and beside other
//! container engines. The lower half of the subnet is the bridge's and the instances'; the upper half is no interface's:
//! services have their virtual addresses there, and the firewall redirects what is sent to them to the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_model::{Digest, InstanceId, ServiceKey};
use serde::{Deserialize, Serialize};

use crate::firewall::{self, BRIDGES, Firewall, InsidePorts};
use crate::netlink::Socket;
use crate::record;
use crate::spec::Link;

/// The root's whole subnet.
const SUBNET: u8 = 22;
/// Of each half.
pub(crate) const PREFIX: u8 = SUBNET + 1;
const ADDRESSES: u32 = 1 << (32 - PREFIX);
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the network's state {path} can't be kept")]
    State { path: PathBuf, source: io::Error },
    #[error("the bridge {name} can't be made")]
    Bridge { name: String, source: io::Error },
    #[error("every subnet below 10.0.0.0/8 that kiln tried is in use: free one of them")]
    NoSubnet,
    #[error("all {ADDRESSES} addresses of the root's subnet are in use")]
    Full,
    #[error(
        "the firewall table {table} can't be written: the kernel needs nf_tables with `ct`, `nat` and `masq` \
         (`modprobe nf_tables nft_ct nft_nat nft_masq nft_chain_nat`)"
    )]
    Firewall { table: String, source: io::Error },
    #[error("no port for names can be had on the steps' bridge")]
    Names(#[source] io::Error),
    #[error("the machine's resolver configuration can't be read")]
    Resolver(#[source] io::Error),
    #[error("packets can't be forwarded: {FORWARDING} can't be set to 1")]
    Forwarding(#[source] io::Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    subnet: Ipv4Addr,
    /// The last one given: a reused address is as old as can be.
    last: u32,
    given: BTreeMap<InstanceId, Ipv4Addr>,
    /// Instances without a way out.
    #[serde(default)]
    closed: BTreeSet<InstanceId>,
    #[serde(default)]
    services: BTreeMap<ServiceKey, Ipv4Addr>,
    /// As `last`, of the services' half.
    #[serde(default)]
    last_service: u32,
}

/// What is so until the process ends.
#[derive(Default)]
struct Live {
    ports: Option<InsidePorts>,
    written: Option<Firewall>,
}

#[derive(Clone)]
pub(crate) struct Network {
    path: PathBuf,
    pub(crate) bridge: String,
    prefix_name: String,
    saved: Arc<Mutex<Saved>>,
    live: Arc<Mutex<Live>>,
}

impl Network {
    pub(crate) fn open(root: &Path) -> Result<Self, NetError> {
        let path = root.join("network.json");
        let hash = Digest::of(root.as_os_str().as_encoded_bytes());
        let saved = match record::read_json::<Saved>(&path) {
            Ok(Some(saved)) => saved,
            Ok(None) => Saved {
                subnet: choose(&hash)?,
                last: 1,
                given: BTreeMap::new(),
                closed: BTreeSet::new(),
                services: BTreeMap::new(),
                last_service: 0,
            },
            Err(source) => return Err(NetError::State { path, source }),
        };
        let short = &hash.hex()[..8];
        Ok(Self {
            path,
            bridge: format!("{BRIDGES}{short}"),
            prefix_name: format!("k{}", &short[..4]),
            saved: Arc::new(Mutex::new(saved)),
            live: Arc::default(),
        })
    }

    fn saved(&self) -> std::sync::MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Self::gateway_of(&self.saved())
    }

    fn gateway_of(saved: &Saved) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(saved.subnet) + 1)
    }

    /// The bridge is there and up when this returns, and the firewall is what it should be.
    pub(crate) fn ensure(&self) -> Result<(), NetError> {
        let failed = |source| NetError::Bridge {
            name: self.bridge.clone(),
            source,
        };
        let gateway = self.gateway();
        Socket::open()
            .and_then(|s| s.make_bridge(&self.bridge, gateway, PREFIX))
            .map_err(failed)?;
        forward_packets().map_err(NetError::Forwarding)?;
        self.ensure_firewall()
    }

    fn ensure_firewall(&self) -> Result<(), NetError> {
        let failed = |source| NetError::Firewall {
            table: self.bridge.clone(),
            source,
        };
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = {
            let saved = self.saved();
            let base = u32::from(saved.subnet);
            let address = |id| saved.given.get(id).copied();
            Firewall {
                bridge: self.bridge.clone(),
                gateway: Self::gateway_of(&saved),
                instances: (saved.subnet, PREFIX),
                services: Some((Ipv4Addr::from(base + ADDRESSES), PREFIX)),
                ports: live.ports,
                closed: saved.closed.iter().filter_map(address).collect(),
            }
        };
        let is_there = firewall::is_there(&self.bridge).map_err(failed)?;
        if !is_there || live.written.as_ref() != Some(&wanted) {
            wanted.write().map_err(failed)?;
            live.written = Some(wanted);
        }
        firewall::pass_others(&self.bridge).map_err(failed)
    }

    /// From now on services and names are reached at these ports.
    pub(crate) fn open_inside(&self, ports: InsidePorts) -> Result<(), NetError> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.ports = Some(ports);
        drop(live);
        self.ensure()
    }

    /// The service's virtual address: the same one until it is forgotten.
    pub(crate) fn service_address(&self, key: &ServiceKey) -> Result<Ipv4Addr, NetError> {
        let mut saved = self.saved();
        if let Some(address) = saved.services.get(key) {
            return Ok(*address);
        }
        let base = u32::from(saved.subnet) + ADDRESSES;
        let (offset, address) =
            free(base, saved.last_service, saved.services.values()).ok_or(NetError::Full)?;
        saved.last_service = offset;
        saved.services.insert(key.clone(), address);
        self.save(&saved)?;
        Ok(address)
    }

    pub(crate) fn forget_service(&self, key: &ServiceKey) -> Result<(), NetError> {
        let mut saved = self.saved();
        if saved.services.remove(key).is_some() {
            self.save(&saved)?;
        }
        Ok(())
    }

    /// The instance's address: the same one each time.
    pub(crate) fn give(&self, id: &InstanceId, egress: bool) -> Result<Link, NetError> {
        let mut saved = self.saved();
        let gateway = Self::gateway_of(&saved);
        let base = u32::from(saved.subnet);
        let address = match saved.given.get(id) {
            Some(address) => *address,
            None => {
                let (offset, address) =
                    free(base, saved.last, saved.given.values()).ok_or(NetError::Full)?;
                saved.last = offset;
                saved.given.insert(id.clone(), address);
                if !egress {
                    saved.closed.insert(id.clone());
                }
                self.save(&saved)?;
                address
            }
        };
        drop(saved);
        // Before the first packet of an instance that has no way out.
        self.ensure()?;
        Ok(Link {
            address,
            prefix: PREFIX,
            gateway,
        })
    }

    pub(crate) fn take_back(&self, id: &InstanceId) -> Result<(), NetError> {
        let mut saved = self.saved();
        if saved.given.remove(id).is_none() {
            return Ok(());
        }
        let was_closed = saved.closed.remove(id);
        self.save(&saved)?;
        drop(saved);
        if was_closed {
            // Its address may be given to one that has a way out.
            self.ensure_firewall()?;
        }
        Ok(())
    }

    /// Bridge and firewall go.
    pub(crate) fn close(&self) -> io::Result<()> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.written = None;
        self.delete(&self.bridge)?;
        firewall::remove(&self.bridge)
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
        record::write_json(&self.path, saved).map_err(|source| NetError::State {
            path: self.path.clone(),
            source,
        })
    }
}

/// The next address after `last` that nobody has. Network, gateway and broadcast are nobody's.
fn free<'a>(
    base: u32,
    last: u32,
    given: impl Iterator<Item = &'a Ipv4Addr>,
) -> Option<(u32, Ipv4Addr)> {
    let given: BTreeSet<_> = given.collect();
    (1..=ADDRESSES)
        .map(|step| (last + step) % ADDRESSES)
        .filter(|offset| (2..ADDRESSES - 1).contains(offset))
        .map(|offset| (offset, Ipv4Addr::from(base + offset)))
        .find(|(_, address)| !given.contains(address))
}

/// The whole machine's: an answer comes in by an interface that is not kiln's.
pub(crate) fn forward_packets() -> io::Result<()> {
    if fs::read_to_string(FORWARDING)?.trim() == "0" {
        fs::write(FORWARDING, "1")?;
    }
    Ok(())
}

/// A /22 below 10.64.0.0/10 that no route of this machine goes into.
pub(crate) fn choose(hash: &Digest) -> Result<Ipv4Addr, NetError> {
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
    let slots = 1_u32 << (SUBNET - 10);
    let mask = u32::MAX << (32 - SUBNET);
    (0..slots)
        .map(|step| {
            u32::from(Ipv4Addr::new(10, 64, 0, 0))
                + (seed.wrapping_add(step) % slots) * (2 * ADDRESSES)
        })
        .find(|subnet| {
            routes
                .iter()
                .all(|(to, m)| subnet & (m & mask) != to & (m & mask))
        })
        .map(Ipv4Addr::from)
        .ok_or(NetError::NoSubnet)
}
