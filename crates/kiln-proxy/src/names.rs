//! The name server for instances: a thread of its own, so that names and requests don't wait for each other.
//!
//! Services' names are answered from the present table. Everything else is handed to the host's name servers and their
//! answers handed back as they are; over TCP the same, a query after the other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, LocalSet};

use super::log::say;
use super::table::Shared;
use kiln_pool::{Reply, reply};
use kiln_supervise::handoff::SocketName;

const RESOLVERS: &str = "/etc/resolv.conf";
const DNS: u16 = 53;
/// Of one name server; then the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that wait for the host's name servers, and connections.
const AT_ONCE: usize = 1024;
/// A connection without a question.
const IDLE: Duration = Duration::from_secs(10);
/// EDNS lets an answer be larger than the 512 bytes of RFC 1035.
const LARGEST: usize = u16::MAX as usize;

pub(super) type NamedSockets = Vec<(SocketName, Arc<OwnedFd>)>;
/// The sockets to serve from now on; none when the proxy retires.
pub(super) type Inbox = mpsc::UnboundedReceiver<NamedSockets>;

pub(super) fn run(shared: Arc<Shared>, mut inbox: Inbox) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let server = Rc::new(Server {
        shared,
        room: Arc::new(Semaphore::new(AT_ONCE)),
    });
    LocalSet::new().block_on(&runtime, async move {
        let mut serving: Vec<JoinHandle<()>> = Vec::new();
        while let Some(sockets) = inbox.recv().await {
            for task in serving.drain(..) {
                task.abort();
            }
            for (name, descriptor) in sockets {
                match Rc::clone(&server).serve(name, &descriptor) {
                    Ok(Some(task)) => serving.push(task),
                    Ok(None) => {}
                    Err(error) => say(&format!("can't answer on {name}: {error}")),
                }
            }
        }
    });
    Ok(())
}

struct Server {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

impl Server {
    fn serve(
        self: Rc<Self>,
        name: SocketName,
        descriptor: &OwnedFd,
    ) -> io::Result<Option<JoinHandle<()>>> {
        let descriptor = descriptor.try_clone()?;
        let forwards = match name {
            SocketName::NamesUdp => true,
            SocketName::ClosedNamesUdp => false,
            SocketName::NamesTcp => {
                let listener = std::net::TcpListener::from(descriptor);
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                return Ok(Some(tokio::task::spawn_local(self.streams(listener))));
            }
            SocketName::Address(_) | SocketName::Services => return Ok(None),
        };
        let socket = std::net::UdpSocket::from(descriptor);
        socket.set_nonblocking(true)?;
        let socket = Rc::new(UdpSocket::from_std(socket)?);
        Ok(Some(tokio::task::spawn_local(
            self.datagrams(socket, forwards),
        )))
    }

    fn reply(&self, query: &[u8], forwards: bool) -> Reply {
        let live = self.shared.live();
        reply(query, forwards, |service, environment| {
            live.names.get(&format!("{environment}/{service}")).copied()
        })
    }

    async fn datagrams(self: Rc<Self>, socket: Rc<UdpSocket>, forwards: bool) {
        let mut query = vec![0; LARGEST];
        loop {
            let (read, from) = match socket.recv_from(&mut query).await {
                Ok(received) => received,
                Err(error) => {
                    say(&format!("can't receive questions for names: {error}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            match self.reply(&query[..read], forwards) {
                Reply::Ignore => {}
                // One that does not arrive is asked for again.
                Reply::Answer(answer) => drop(socket.send_to(&answer, from).await),
                Reply::Forward => {
                    // No room: asked again as well.
                    let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
                        continue;
                    };
                    let (query, socket) = (query[..read].to_vec(), Rc::clone(&socket));
                    tokio::task::spawn_local(async move {
                        if let Some(answer) = ask_by_datagram(&query).await {
                            drop(socket.send_to(&answer, from).await);
                        }
                        drop(room);
                    });
                }
            }
        }
    }

    async fn streams(self: Rc<Self>, listener: TcpListener) {
        loop {
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let server = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                while let Ok(Ok(query)) = tokio::time::timeout(IDLE, read(&mut stream)).await {
                    let answer = match server.reply(&query, true) {
                        Reply::Ignore => None,
                        Reply::Answer(answer) => Some(answer),
                        Reply::Forward => ask_by_stream(&query).await,
                    };
                    let Some(answer) = answer else { break };
                    if write(&mut stream, &answer).await.is_err() {
                        break;
                    }
                }
                drop(room);
            });
        }
    }
}

/// A message over TCP has its length before it (RFC 1035, 4.2.2).
async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).await
}

async fn ask_by_datagram(query: &[u8]) -> Option<Vec<u8>> {
    for server in resolvers() {
        let asked = async {
            let any: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            // A port of its own for each question, and only the server's packets: what others make up is not heard.
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(server).await?;
            socket.send(query).await?;
            let mut answer = vec![0; LARGEST];
            loop {
                let read = socket.recv(&mut answer).await?;
                if answer[..read].get(..2) == query.get(..2) {
                    answer.truncate(read);
                    return io::Result::Ok(answer);
                }
            }
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn ask_by_stream(query: &[u8]) -> Option<Vec<u8>> {
    for server in resolvers() {
        let asked = async {
            let mut stream = TcpStream::connect(server).await?;
            write(&mut stream, query).await?;
            read(&mut stream).await
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

/// The host's (resolv.conf(5)), read for each question: networks come and go.
fn resolvers() -> Vec<SocketAddr> {
    std::fs::read_to_string(RESOLVERS)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .map(|address| (address, DNS).into())
        .collect()
}
