//! Netlink messages, and the little of rtnetlink(7) that an instance's network needs, blocking, one message at a time.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::spec::Link;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const LINK_NEW: u16 = 16;
const LINK_DELETE: u16 = 17;
const LINK_SET: u16 = 19;
const ADDRESS_NEW: u16 = 20;
const ROUTE_NEW: u16 = 24;
const ERROR: u16 = 2;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const NESTED: u16 = 0x8000;
const AF_BRIDGE: u8 = 7;
const AF_INET: u8 = 2;
const UP: u32 = 1;

/// The interface's name inside an instance.
pub(crate) const INSIDE: &str = "eth0";

/// A request as netlink(7) lays it out: a header whose length is filled in when it is sent, and attributes.
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST | ACK).to_ne_bytes());
        // Sequence and port: one request at a time needs neither.
        bytes.extend([0; 8]);
        Self(bytes)
    }

    /// `struct ifinfomsg`.
    fn link(mut self, family: u8, index: u32, flags: u32, change: u32) -> Self {
        self.0.extend([family, 0, 0, 0]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(change.to_ne_bytes());
        self
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length =
            u16::try_from(value.len() + 4).expect("attributes here are a few kilobytes at most");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        self
    }

    pub(crate) fn name(self, kind: u16, name: &str) -> Self {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    pub(crate) fn nested(self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let inner = inner(Self(Vec::new()));
        self.attribute(kind | NESTED, &inner.0)
    }
}

pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        Ok(Self(socket))
    }

    fn ask(&self, mut message: Message) -> io::Result<()> {
        let length = u32::try_from(message.0.len()).map_err(io::Error::other)?;
        message.0[..4].copy_from_slice(&length.to_ne_bytes());
        rustix::net::send(&self.0, &message.0, SendFlags::empty())?;
        let mut answer = [0; 8192];
        loop {
            let (read, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
            if read < 20 || u16::from_ne_bytes([answer[4], answer[5]]) != ERROR {
                continue;
            }
            let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            return if code == 0 {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(-code))
            };
        }
    }

    pub(crate) fn index(&self, name: &str) -> io::Result<u32> {
        // Any socket of this network namespace will do for the ioctl; a netlink one does not.
        let probe = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(rustix::net::netdevice::name_to_index(&probe, name)?)
    }

    /// Makes a bridge with an address; one that is there already is left as it is.
    pub(crate) fn make_bridge(&self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // Without one of its own a bridge takes the lowest of its ports', and changes it under the instances when that port goes.
        let [a, b, c, d] = address.octets();
        let message = Message::new(LINK_NEW, CREATE | EXCLUSIVE)
            .link(0, 0, UP, UP)
            .name(IFLA_IFNAME, name)
            .attribute(IFLA_ADDRESS, &[0x02, 0x6b, a, b, c, d])
            .nested(IFLA_LINKINFO, |info| {
                info.attribute(IFLA_INFO_KIND, b"bridge")
            });
        there_already(self.ask(message))?;
        let index = self.index(name)?;
        without_ipv6(name)?;
        there_already(self.add_address(index, address, prefix))?;
        self.set_up(index)
    }

    fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(ADDRESS_NEW, CREATE | EXCLUSIVE);
        // `struct ifaddrmsg`.
        message.0.extend([AF_INET, prefix, 0, 0]);
        message.0.extend(index.to_ne_bytes());
        let message = message
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        self.ask(message)
    }

    fn set_up(&self, index: u32) -> io::Result<()> {
        self.ask(Message::new(LINK_NEW, 0).link(0, index, UP, UP))
    }

    /// A pair: `outside` on the bridge, isolated from the other ports, and [`INSIDE`] in the network namespace of `pid`.
    pub(crate) fn make_pair(&self, outside: &str, bridge: &str, pid: i32) -> io::Result<()> {
        let bridge = self.index(bridge)?;
        let message = Message::new(LINK_NEW, CREATE | EXCLUSIVE)
            .link(0, 0, UP, UP)
            .name(IFLA_IFNAME, outside)
            .attribute(IFLA_MASTER, &bridge.to_ne_bytes())
            .nested(IFLA_LINKINFO, |info| {
                info.attribute(IFLA_INFO_KIND, b"veth")
                    .nested(IFLA_INFO_DATA, |data| {
                        data.nested(VETH_INFO_PEER, |peer| {
                            peer.link(0, 0, 0, 0)
                                .name(IFLA_IFNAME, INSIDE)
                                .attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes())
                        })
                    })
            });
        self.ask(message)?;
        let index = self.index(outside)?;
        let isolate = Message::new(LINK_SET, 0)
            .link(AF_BRIDGE, index, 0, 0)
            .nested(IFLA_PROTINFO, |port| {
                port.attribute(IFLA_BRPORT_ISOLATED, &[1])
            });
        self.ask(isolate)?;
        without_ipv6(outside)?;
        self.set_up(index)
    }

    /// Deletes an interface; one that is not there is no error.
    pub(crate) fn delete(&self, name: &str) -> io::Result<()> {
        let message = Message::new(LINK_DELETE, 0)
            .link(0, 0, 0, 0)
            .name(IFLA_IFNAME, name);
        match self.ask(message) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        const MAIN: u8 = 254;
        const STATIC: u8 = 4;
        const UNICAST: u8 = 1;
        let mut message = Message::new(ROUTE_NEW, CREATE | EXCLUSIVE);
        // `struct rtmsg`.
        message
            .0
            .extend([AF_INET, 0, 0, 0, MAIN, STATIC, 0, UNICAST, 0, 0, 0, 0]);
        self.ask(message.attribute(RTA_GATEWAY, &gateway.octets()))
    }
}

fn there_already(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Router advertisements and link-local addresses are ways around the firewall: an interface of kiln's speaks IPv4 only.
fn without_ipv6(interface: &str) -> io::Result<()> {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match std::fs::write(setting, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// From inside a fresh network namespace: the loopback, and the instance's own interface where it has one.
pub(crate) fn configure_inside(link: Option<&Link>) -> io::Result<()> {
    let socket = Socket::open()?;
    socket.set_up(socket.index("lo")?)?;
    // Its ports are its own, so that no capability is needed for the low ones.
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    if let Some(link) = link {
        let index = socket.index(INSIDE)?;
        without_ipv6(INSIDE)?;
        socket.add_address(index, link.address, link.prefix)?;
        socket.set_up(index)?;
        socket.add_default_route(link.gateway)?;
    }
    Ok(())
}
