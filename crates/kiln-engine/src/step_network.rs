//! The network of a bake's steps: a bridge, a subnet and a firewall of the bake's own, named from the root and the bake's pid, so that
//! bakes need no daemon and do not meet. A step reaches the world through the host's address, and nothing of the host, no instance and
//! no metadata service. All of it goes with the bake; what a killed one left is removed by the next.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_model::Digest;

use crate::firewall::{self, BRIDGES, Firewall};
use crate::names::Forwarder;
use crate::net::{self, NetError, PREFIX};
use crate::netlink::Socket;
use crate::spec::Link;

/// After [`BRIDGES`]: no digit of a root's bridge.
const STEPS: &str = "s";
/// Of a name, which has 15 characters at most: digits of the root's digest, then the bake's pid and its number in the process.
const DIGITS: usize = 2;
const PID: usize = 5;
const NUMBER: usize = 3;
const RESOLVER: &str = "/etc/resolv.conf";
/// What systemd-resolved, which listens on a loopback address itself, asks.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// The network of one bake, until it is dropped.
pub struct StepNetwork {
    bridge: String,
    /// Of the host's sides of the steps' pairs.
    prefix: String,
    subnet: Ipv4Addr,
    given: AtomicU32,
    resolver: String,
    _forwarder: Option<Forwarder>,
}

/// A step's place in it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct StepLink {
    bridge: String,
    outside: String,
    link: Link,
}

impl StepLink {
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Gives the network namespace of `pid` its interface.
    pub(crate) fn connect(&self, pid: i32) -> io::Result<()> {
        Socket::open()?.make_pair(&self.outside, &self.bridge, pid)
    }
}

impl StepNetwork {
    pub fn open(root: &Path) -> Result<Self, NetError> {
        sweep();
        let pid = std::process::id();
        let hash = Digest::of(format!("{}\0{pid}", root.display()).as_bytes());
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}", short(pid, PID), short(next, NUMBER));
        let bridge = format!("{BRIDGES}{STEPS}{}{name}", &hash.hex()[..DIGITS]);
        // Another one for each, since it is only taken when the bridge is there.
        let subnet = net::choose(&Digest::of(bridge.as_bytes()))?;
        let gateway = Ipv4Addr::from(u32::from(subnet) + 1);
        let mut network = Self {
            bridge: bridge.clone(),
            prefix: format!("k{STEPS}{name}"),
            subnet,
            given: AtomicU32::new(1),
            resolver: String::new(),
            _forwarder: None,
        };
        Socket::open()
            .and_then(|socket| socket.make_bridge(&bridge, gateway, PREFIX))
            .map_err(|source| NetError::Bridge {
                name: bridge.clone(),
                source,
            })?;
        net::forward_packets().map_err(NetError::Forwarding)?;
        let (servers, rest) = servers().map_err(NetError::Resolver)?;
        let (usable, hidden): (Vec<_>, Vec<_>) =
            servers.into_iter().partition(|server| reachable(*server));
        let forwarder = if usable.is_empty() && !hidden.is_empty() {
            // Those that only the host reaches are asked for the steps.
            Some(Forwarder::start(gateway, hidden).map_err(NetError::Names)?)
        } else {
            None
        };
        let ports = forwarder.as_ref().map(Forwarder::ports);
        let names = if ports.is_some() {
            vec![IpAddr::V4(gateway)]
        } else {
            usable
        };
        network.resolver = names
            .iter()
            .map(|name| format!("nameserver {name}\n"))
            .chain(rest.into_iter().map(|line| line + "\n"))
            .collect();
        network._forwarder = forwarder;
        let firewall = Firewall {
            bridge: bridge.clone(),
            gateway,
            instances: (subnet, PREFIX),
            services: None,
            ports,
            closed: Vec::new(),
        };
        firewall
            .write()
            .and_then(|()| firewall::pass_others(&bridge))
            .map_err(|source| NetError::Firewall {
                table: bridge,
                source,
            })?;
        Ok(network)
    }

    /// What stands in a step's `/etc/resolv.conf`.
    pub fn resolver(&self) -> &str {
        &self.resolver
    }

    /// A place for one more step.
    pub fn link(&self) -> Result<StepLink, NetError> {
        // The gateway is the first address, and the last one is the broadcast's.
        let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
        if number >= (1 << (32 - PREFIX)) - 1 {
            return Err(NetError::Full);
        }
        Ok(StepLink {
            bridge: self.bridge.clone(),
            outside: format!("{}{}", self.prefix, short(number, NUMBER)),
            link: Link {
                address: Ipv4Addr::from(u32::from(self.subnet) + number),
                prefix: PREFIX,
                gateway: Ipv4Addr::from(u32::from(self.subnet) + 1),
            },
        })
    }
}

impl Drop for StepNetwork {
    fn drop(&mut self) {
        // What stays is removed by the next bake.
        let _ = remove(&self.bridge);
    }
}

/// The bridge last: it is what [`sweep`] finds the rest by.
fn remove(bridge: &str) -> io::Result<()> {
    firewall::remove(bridge)?;
    Socket::open()?.delete(bridge)
}

/// Removes the bridges of bakes that are no more. The pairs on them went with their steps.
fn sweep() {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = remove(&name);
        }
    }
}

/// The last `digits` of a number to the base 36.
fn short(mut number: u32, digits: usize) -> String {
    let mut text = vec![b'0'; digits];
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[number as usize % 36];
        number /= 36;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whose bake the bridge of this name is.
fn owner(bridge: &str) -> Option<u32> {
    let rest = bridge.strip_prefix(BRIDGES)?.strip_prefix(STEPS)?;
    if rest.len() != DIGITS + PID + NUMBER {
        return None;
    }
    u32::from_str_radix(rest.get(DIGITS..DIGITS + PID)?, 36).ok()
}

/// The machine's own resolver configuration (resolv.conf(5)); empty where it has none.
pub fn host_resolver() -> io::Result<String> {
    text_of(RESOLVER)
}

fn text_of(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The machine's name servers, and the other lines of its resolver's configuration.
fn servers() -> io::Result<(Vec<IpAddr>, Vec<String>)> {
    let (servers, rest) = parse(&host_resolver()?);
    if !servers.iter().any(|server| reachable(*server)) {
        let upstream = parse(&text_of(UPSTREAM)?);
        if upstream.0.iter().any(|server| reachable(*server)) {
            return Ok(upstream);
        }
    }
    Ok((servers, rest))
}

fn parse(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut rest = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            // A zone is an interface of the host's.
            (Some("nameserver"), Some(server)) => servers.extend(server.parse::<IpAddr>()),
            (Some("search" | "domain" | "options"), Some(_)) => rest.push(line.trim().to_owned()),
            _ => {}
        }
    }
    (servers, rest)
}

/// A step gets IPv4 only, and no address of the host's own.
fn reachable(server: IpAddr) -> bool {
    match server {
        IpAddr::V4(server) => {
            !server.is_loopback()
                && !server.is_unspecified()
                && !server.is_link_local()
                // An address can be bound only where it is an interface's.
                && std::net::UdpSocket::bind((server, 0)).is_err()
        }
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_names_its_bake_and_a_roots_bridge_none() {
        // The largest there is (PID_MAX_LIMIT).
        let name = format!(
            "kilnsab{}{}",
            short(4_194_304, PID),
            short(46_656 + 7, NUMBER)
        );
        assert_eq!((name.len(), owner(&name)), (15, Some(4_194_304)));
        for other in ["kiln0123abcd", "kilnb1234567", "kilnsabc", "docker0"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_steps_name_servers_are_those_that_it_reaches() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.77\nnameserver fe80::1%eth0\nsearch a b\noptions ndots:2\n";
        let (servers, rest) = parse(text);
        assert_eq!(rest, ["search a b", "options ndots:2"]);
        let usable: Vec<_> = servers
            .into_iter()
            .filter(|server| reachable(*server))
            .collect();
        assert_eq!(usable, ["192.0.2.77".parse::<IpAddr>().unwrap()]);
    }
}
