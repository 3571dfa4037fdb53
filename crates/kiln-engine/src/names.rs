//! Names for the steps of a bake where the machine's name servers can be asked from the machine only: a loopback address is another
//! one inside a container. What comes is handed on as it is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::firewall::InsidePorts;

/// How soon the end of the bake is seen.
const TURN: Duration = Duration::from_millis(100);
/// Resolvers ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a connection, whatever comes on it.
const DEADLINE: Duration = Duration::from_secs(60);
/// A datagram's largest.
const LARGEST: usize = 65_535;
/// Being answered at once. A step asks for what it wants, and gets no more threads of this process than that.
const QUESTIONS_MAX: usize = 256;

/// What all threads of a forwarder know.
#[derive(Default)]
struct Shared {
    over: AtomicBool,
    questions: AtomicUsize,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Answers on a thread of its own, which ends by itself: one that a server is slow to answer must not hold up the others.
    /// What is too much, or has no thread, is dropped: resolvers ask again.
    fn answer(self: &Arc<Self>, answer: impl FnOnce(&Self) + Send + 'static) {
        let place = Place(Arc::clone(self));
        if self.questions.fetch_add(1, Ordering::Relaxed) < QUESTIONS_MAX {
            let _ = Builder::new().spawn(move || answer(&place.0));
        }
    }
}

/// Of a question that is being answered.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.questions.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Forwarder {
    ports: InsidePorts,
    shared: Arc<Shared>,
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
        let mut forwarder = Self {
            ports: InsidePorts {
                // No service is reached from a step.
                services: names_tcp,
                names_udp,
                names_tcp,
                closed_names_udp: names_udp,
            },
            shared: Arc::default(),
            threads: Vec::new(),
        };
        let servers: Arc<[SocketAddr]> = servers.into();
        let (for_udp, for_tcp) = (Arc::clone(&servers), servers);
        let (udp, tcp) = (Arc::clone(&forwarder.shared), Arc::clone(&forwarder.shared));
        let udp = move || answer_datagrams(datagrams, &for_udp, &udp);
        forwarder.threads.push(Builder::new().spawn(udp)?);
        let tcp = move || answer_streams(&streams, &for_tcp, &tcp);
        forwarder.threads.push(Builder::new().spawn(tcp)?);
        Ok(forwarder)
    }

    pub(crate) fn ports(&self) -> InsidePorts {
        self.ports
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_datagrams(socket: UdpSocket, servers: &Arc<[SocketAddr]>, shared: &Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut question = vec![0; LARGEST];
    while !shared.is_over() {
        let Ok((length, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        let (asked, servers) = (question[..length].to_vec(), Arc::clone(servers));
        let socket = Arc::clone(&socket);
        shared.answer(move |shared| {
            let mut answers = servers.iter().map(|server| ask(*server, &asked, shared));
            if let Some(answer) = answers.find_map(Result::ok) {
                let _ = socket.send_to(&answer, from);
            }
        });
    }
}

fn ask(server: SocketAddr, question: &[u8], shared: &Shared) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TURN))?;
    socket.send(question)?;
    let end = Instant::now() + PATIENCE;
    let mut answer = vec![0; LARGEST];
    loop {
        match socket.recv(&mut answer) {
            Ok(length) => {
                answer.truncate(length);
                return Ok(answer);
            }
            Err(error) if is_nothing_yet(&error) && !shared.is_over() && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

fn answer_streams(listener: &TcpListener, servers: &Arc<[SocketAddr]>, shared: &Arc<Shared>) {
    while !shared.is_over() {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(TURN);
            continue;
        };
        let servers = Arc::clone(servers);
        shared.answer(move |shared| {
            let connected = servers
                .iter()
                .find_map(|server| TcpStream::connect_timeout(server, PATIENCE).ok());
            if let Some(server) = connected {
                let _ = join(&client, &server, shared);
            }
        });
    }
}

fn join(client: &TcpStream, server: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nonblocking(false)?;
    for stream in [client, server] {
        stream.set_read_timeout(Some(TURN))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    let end = Instant::now() + DEADLINE;
    std::thread::scope(|scope| {
        Builder::new().spawn_scoped(scope, || pass(client, server, shared, end))?;
        pass(server, client, shared, end);
        Ok(())
    })
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, end: Instant) {
    let mut chunk = [0; 4096];
    let mut heard = Instant::now();
    while !shared.is_over() && Instant::now() < end && heard.elapsed() < PATIENCE {
        match from.read(&mut chunk) {
            Ok(read @ 1..) if to.write_all(&chunk[..read]).is_ok() => heard = Instant::now(),
            Err(error) if is_nothing_yet(&error) => {}
            Ok(_) | Err(_) => break,
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

    #[test]
    fn no_more_questions_than_so_many_are_answered_at_once() {
        let shared = Arc::new(Shared::default());
        let (begin, begun) = std::sync::mpsc::channel();
        let gate = Arc::new(std::sync::RwLock::new(()));
        let closed = gate.write().unwrap();
        let ask = || {
            let (begin, gate) = (begin.clone(), Arc::clone(&gate));
            shared.answer(move |_| {
                drop(gate.read());
                begin.send(()).unwrap();
            });
        };
        (0..QUESTIONS_MAX + 50).for_each(|_| ask());
        drop(closed);
        (0..QUESTIONS_MAX).for_each(|_| begun.recv().unwrap());
        // Those that were answered make place again, and those that were dropped took none.
        while shared.questions.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert!(begun.try_recv().is_err());
        ask();
        begun.recv().unwrap();
    }

    #[test]
    fn a_connection_ends_with_its_network_whatever_comes_on_it() {
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = stream.local_addr().unwrap();
        let forwarder = Forwarder::to(Ipv4Addr::LOCALHOST, vec![server]).unwrap();
        let (tell, accepted) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            let (mut asked, _) = stream.accept().unwrap();
            tell.send(()).unwrap();
            let _ = asked.read_to_end(&mut Vec::new());
        });
        let port = forwarder.ports().names_tcp;
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.set_read_timeout(Some(TURN)).unwrap();
        client.write_all(b"a").unwrap();
        accepted.recv().unwrap();
        drop(forwarder);
        let has_ended = (0..900).any(|_| {
            let read = client.write_all(b"a").and_then(|()| client.read(&mut [0]));
            !read.is_err_and(|error| is_nothing_yet(&error))
        });
        assert!(has_ended);
        drop(client);
        reading.join().unwrap();
    }
}
