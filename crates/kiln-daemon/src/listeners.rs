//! The listening sockets: bound here, as root, before anything starts, so that a taken port is told at once
//! and ports below 1024 work; then deposited in the supervisor, where every proxy fetches them by name.
//!
//! A socket is never closed and bound again while its service lives: closing one loses what waits in its accept
//! queue.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kiln_engine::InsidePorts;
use kiln_supervise::handoff::{self, SocketName};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

/// As long as the kernel allows by default (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{address} is taken by another program: end it, or give the service another `listen` (`ss -ltnp` names the program)"
    )]
    Taken { address: SocketAddr },
    #[error("kiln can't listen on {address}: is the address one of this machine's?")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the supervisor can't be reached: start kiln with `kiln up` or `kiln supervise`, which keeps the listening sockets"
    )]
    Supervisor(#[source] handoff::HandoffError),
}

pub(crate) struct Listeners {
    root: PathBuf,
    held: BTreeMap<SocketName, OwnedFd>,
}

impl Listeners {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            held: BTreeMap::new(),
        }
    }

    /// The supervisor holds a socket that listens on `address` when this returns.
    pub(crate) fn ensure(&mut self, address: SocketAddr) -> Result<(), ListenError> {
        self.hold(SocketName::Address(address), || {
            open(address).map(Into::into)
        })?;
        crate::crash::point("listen");
        Ok(())
    }

    /// The supervisor holds what the proxy serves instances by, at ports of the gateway that the kernel chose.
    pub(crate) fn ensure_inside(&mut self, gateway: Ipv4Addr) -> Result<InsidePorts, ListenError> {
        let at = SocketAddr::from((gateway, 0));
        let mut port_of = |name| {
            let descriptor = self.hold(name, || match name {
                SocketName::NamesUdp | SocketName::ClosedNamesUdp => open_udp(at).map(Into::into),
                SocketName::Address(_) | SocketName::Services | SocketName::NamesTcp => {
                    open(at).map(Into::into)
                }
            })?;
            port_of(descriptor).map_err(|source| ListenError::Bind {
                address: at,
                source,
            })
        };
        Ok(InsidePorts {
            services: port_of(SocketName::Services)?,
            names_udp: port_of(SocketName::NamesUdp)?,
            names_tcp: port_of(SocketName::NamesTcp)?,
            closed_names_udp: port_of(SocketName::ClosedNamesUdp)?,
        })
    }

    fn hold(
        &mut self,
        name: SocketName,
        open: impl FnOnce() -> Result<OwnedFd, ListenError>,
    ) -> Result<&OwnedFd, ListenError> {
        let mut client = handoff::Client::connect(&self.root).map_err(ListenError::Supervisor)?;
        let text = name.to_string();
        let there = client.fetch(&text).map_err(ListenError::Supervisor)?;
        let held = match (there, self.held.remove(&name)) {
            (Some(_), Some(held)) => held,
            (Some(descriptor), None) => descriptor,
            (None, held) => {
                let descriptor = held.map_or_else(open, Ok)?;
                client
                    .deposit(&text, &descriptor)
                    .map_err(ListenError::Supervisor)?;
                descriptor
            }
        };
        Ok(self.held.entry(name).or_insert(held))
    }

    /// Sockets listen on these addresses when this returns, and on no others, whoever opened them.
    pub(crate) fn listen_only(&mut self, wanted: &BTreeSet<SocketAddr>) -> Result<(), ListenError> {
        let mut failed = None;
        for address in wanted {
            if let Err(error) = self.ensure(*address) {
                failed = Some(error);
            }
        }
        let mut client = handoff::Client::connect(&self.root).map_err(ListenError::Supervisor)?;
        for text in client.names().map_err(ListenError::Supervisor)? {
            // What is named otherwise serves instances.
            let Ok(address) = text.parse::<SocketAddr>() else {
                continue;
            };
            if !wanted.contains(&address) {
                client.remove(&text).map_err(ListenError::Supervisor)?;
                self.held.remove(&SocketName::Address(address));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn open(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let failed = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::ADDRINUSE => ListenError::Taken { address },
        errno => ListenError::Bind {
            address,
            source: errno.into(),
        },
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).map_err(failed)?;
    // Connections of a former listener in TIME_WAIT must not keep the port.
    sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    bind(&socket, &address).map_err(failed)?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(TcpListener::from(socket))
}

fn open_udp(address: SocketAddr) -> Result<UdpSocket, ListenError> {
    let failed = |source| ListenError::Bind { address, source };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn port_of(descriptor: &OwnedFd) -> std::io::Result<u16> {
    let address = SocketAddr::try_from(rustix::net::getsockname(descriptor)?)?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_as_such() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = open(address).unwrap_err();
        assert!(matches!(error, ListenError::Taken { address: at } if at == address));
        let elsewhere = open("192.0.2.1:1".parse().unwrap()).unwrap_err();
        assert!(matches!(elsewhere, ListenError::Bind { .. }));
    }
}
