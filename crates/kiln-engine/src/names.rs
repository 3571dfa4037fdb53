//! Names for the steps of a bake where the machine's name servers can be asked from the machine only: a loopback address is another
//! one inside a container. What comes is handed on as it is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::firewall::InsidePorts;

/// How soon the end of the bake is seen.
const TURN: Duration = Duration::from_millis(100);
/// Resolvers ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// A datagram's largest.
const LARGEST: usize = 65_535;

pub(crate) struct Forwarder {
    ports: InsidePorts,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Forwarder {
    /// Answers at ports of `gateway` that the kernel chooses: port 53 may be taken on every address.
    pub(crate) fn start(gateway: Ipv4Addr, servers: Vec<IpAddr>) -> io::Result<Self> {
        Self::to(
            gateway,
            servers
                .into_iter()
                .map(|server| SocketAddr::new(server, 53))
                .collect(),
        )
    }

    fn to(gateway: Ipv4Addr, servers: Vec<SocketAddr>) -> io::Result<Self> {
        let datagrams = UdpSocket::bind((gateway, 0))?;
        let streams = TcpListener::bind((gateway, 0))?;
        let names_udp = datagrams.local_addr()?.port();
        let names_tcp = streams.local_addr()?.port();
        datagrams.set_read_timeout(Some(TURN))?;
        streams.set_nonblocking(true)?;
        let over = Arc::new(AtomicBool::new(false));
        let servers: Arc<[SocketAddr]> = servers.into();
        let (for_udp, for_tcp) = (Arc::clone(&servers), servers);
        let (udp_over, tcp_over) = (Arc::clone(&over), Arc::clone(&over));
        let udp = std::thread::spawn(move || answer_datagrams(datagrams, &for_udp, &udp_over));
        let tcp = std::thread::spawn(move || answer_streams(&streams, &for_tcp, &tcp_over));
        Ok(Self {
            ports: InsidePorts {
                // No service is reached from a step.
                services: names_tcp,
                names_udp,
                names_tcp,
                closed_names_udp: names_udp,
            },
            over,
            threads: vec![udp, tcp],
        })
    }

    pub(crate) fn ports(&self) -> InsidePorts {
        self.ports
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_datagrams(socket: UdpSocket, servers: &Arc<[SocketAddr]>, over: &AtomicBool) {
    let socket = Arc::new(socket);
    let mut question = vec![0; LARGEST];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        let (asked, servers) = (question[..length].to_vec(), Arc::clone(servers));
        let socket = Arc::clone(&socket);
        // One that a server is slow to answer must not hold up the others. It ends by itself.
        std::thread::spawn(move || {
            if let Some(answer) = servers.iter().find_map(|server| ask(*server, &asked).ok()) {
                let _ = socket.send_to(&answer, from);
            }
        });
    }
}

fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut answer = vec![0; LARGEST];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn answer_streams(listener: &TcpListener, servers: &Arc<[SocketAddr]>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(TURN);
            continue;
        };
        let servers = Arc::clone(servers);
        std::thread::spawn(move || {
            let connected = servers
                .iter()
                .find_map(|server| TcpStream::connect_timeout(server, PATIENCE).ok());
            if let Some(server) = connected {
                let _ = join(client, server);
            }
        });
    }
}

fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let asking = std::thread::spawn(move || pass(&mut from_client, &mut to_server));
    let (mut from_server, mut to_client) = (server, client);
    pass(&mut from_server, &mut to_client);
    let _ = asking.join();
    Ok(())
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_handed_on() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let forwarder = Forwarder::to(Ipv4Addr::LOCALHOST, vec![address]).unwrap();
        let answering = std::thread::spawn(move || {
            let mut question = [0; 64];
            let (length, from) = server.recv_from(&mut question).unwrap();
            question[..length].reverse();
            server.send_to(&question[..length], from).unwrap();
        });
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .send_to(b"abc", (Ipv4Addr::LOCALHOST, forwarder.ports().names_udp))
            .unwrap();
        let mut answer = [0; 64];
        let length = client.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"cba");
        answering.join().unwrap();
        drop(forwarder);

        let forwarder =
            Forwarder::to(Ipv4Addr::LOCALHOST, vec![stream.local_addr().unwrap()]).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut asked, _) = stream.accept().unwrap();
            let mut question = [0; 3];
            asked.read_exact(&mut question).unwrap();
            question.reverse();
            asked.write_all(&question).unwrap();
        });
        let port = forwarder.ports().names_tcp;
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.write_all(b"abc").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"cba");
        answering.join().unwrap();
    }
}
