//! The client against servers that misbehave in one way each: what it calls lost has to be lost.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::exchange::Connection;
use super::request::{Request, large_body};
use super::tally::Loss;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A server on loopback that handles each connection by `serve`, until it is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = Arc::new(serve);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream.unwrap()));
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The head's first line and the body of the next request; `None` at the end of the connection.
fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut first = String::new();
    if stream.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first, body))
}

/// The contract of `examples/bench`, as release 7.
fn good(stream: TcpStream) {
    let mut writer = stream.try_clone().unwrap();
    let mut stream = BufReader::new(stream);
    while let Some((first, body)) = read_request(&mut stream) {
        let head = "HTTP/1.1 200 OK\r\nX-Release: bench@7\r\n";
        let written = if first.starts_with("GET /large") {
            let body = large_body(128);
            let mut wire = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for chunk in body.chunks(5000) {
                wire.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n\r\n");
            writer.write_all(&wire)
        } else {
            let body = match first.split(' ').nth(1).unwrap() {
                "/echo" => body,
                "/" => b"bench@7 ok\n".to_vec(),
                "/slow?ms=500" => {
                    std::thread::sleep(Duration::from_millis(500));
                    b"slow 500\n".to_vec()
                }
                other => panic!("unknown path {other}"),
            };
            let mut wire = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
            wire.extend(body);
            writer.write_all(&wire)
        };
        if written.is_err() {
            return;
        }
    }
}

/// Answers the first request of each connection with these bytes and closes.
fn answers(wire: &'static str) -> Server {
    Server::start(move |stream| {
        let mut writer = stream.try_clone().unwrap();
        if read_request(&mut BufReader::new(stream)).is_some() {
            let _ = writer.write_all(wire.as_bytes());
        }
    })
}

fn first_loss(server: &Server) -> Option<Loss> {
    Connection::open(server.address, TIMEOUT)
        .and_then(|mut connection| connection.exchange(&Request::Hello, "bench"))
        .err()
}

#[test]
fn an_answer_that_is_whole_and_right_is_no_loss() {
    let server = Server::start(good);
    let mut connection = Connection::open(server.address, TIMEOUT).unwrap();
    for request in [
        Request::Hello,
        Request::Large { kib: 128 },
        Request::Echo {
            body: vec![0xFF; 70_000],
        },
        Request::Echo { body: Vec::new() },
    ] {
        let answer = connection.exchange(&request, "bench").unwrap();
        assert_eq!(answer.release, "bench@7");
        assert!(connection.reusable());
    }
}

#[test]
fn each_way_to_lose_an_answer_has_its_name() {
    for (wire, loss) in [
        ("", Loss::NoAnswer),
        ("HTTP/1.1 200 OK\r\nContent-Le", Loss::CutBody),
        (
            "HTTP/1.1 200 OK\r\nX-Release: bench@7\r\nContent-Length: 11\r\n\r\nbench@7 ",
            Loss::CutBody,
        ),
        (
            "HTTP/1.1 200 OK\r\nX-Release: bench@7\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nbench@7 ok\n\r\n",
            Loss::CutBody,
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            Loss::Status(503),
        ),
        (
            "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
            Loss::Status(302),
        ),
        (
            "HTTP/1.1 200 OK\r\nX-Release: bench@7\r\nContent-Length: 11\r\n\r\nbench@8 ok\n",
            Loss::WrongBody,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nbench@7 ok\n", Loss::Malformed),
        ("SSH-2.0-OpenSSH_9.2\r\n", Loss::Malformed),
    ] {
        assert_eq!(first_loss(&answers(wire)), Some(loss), "{wire:?}");
    }
}

#[test]
fn a_reset_is_told_from_a_close() {
    // Closing a socket with unread bytes in it makes the kernel send a reset.
    let server = Server::start(|stream| {
        let mut byte = [0];
        let _ = stream.peek(&mut byte);
    });
    assert_eq!(first_loss(&server), Some(Loss::Reset));
}

#[test]
fn a_port_without_a_listener_is_a_refusal() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let refused = Connection::open(address, TIMEOUT).err();
    assert_eq!(refused, Some(Loss::Refused));
}

#[test]
fn a_server_that_never_answers_is_a_timeout() {
    let server = Server::start(|stream| {
        // Holds the connection until the client gives up.
        let _ = read_request(&mut BufReader::new(stream.try_clone().unwrap()));
        let _ = (&stream).read(&mut [0]);
    });
    let lost = Connection::open(server.address, Duration::from_millis(100))
        .and_then(|mut connection| connection.exchange(&Request::Hello, "bench"))
        .err();
    assert_eq!(lost, Some(Loss::Timeout));
}

#[test]
fn connection_close_is_heeded() {
    let server = answers(
        "HTTP/1.1 200 OK\r\nX-Release: bench@7\r\nConnection: close\r\nContent-Length: 11\r\n\r\nbench@7 ok\n",
    );
    let mut connection = Connection::open(server.address, TIMEOUT).unwrap();
    connection.exchange(&Request::Hello, "bench").unwrap();
    assert!(!connection.reusable());
}

fn load(address: SocketAddr, gate: &Arc<Gate>, requests: u64) -> Tally {
    let load = Load::start(
        LoadOptions {
            address,
            workers: 4,
            rate: 2000,
            timeout: TIMEOUT,
        },
        gate,
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    while load.requests() < requests {
        assert!(
            Instant::now() < deadline,
            "only {} requests",
            load.requests()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    load.finish()
}

#[test]
fn a_load_on_a_good_server_loses_nothing() {
    let server = Server::start(good);
    let tally = load(server.address, &Arc::new(Gate::new([7])), 500);
    assert_eq!(tally.lost_by_kind(), "0");
    assert!(tally.answered >= 500);
    assert!(
        tally
            .latency(500)
            .is_some_and(|l| l < Duration::from_millis(400))
    );
}

#[test]
fn a_release_that_should_not_serve_is_a_loss_of_every_answer() {
    let server = Server::start(good);
    let tally = load(server.address, &Arc::new(Gate::new([8])), 50);
    assert_eq!(tally.answered, 0);
    assert_eq!(tally.lost.get(&Loss::WrongRelease), Some(&tally.requests()));
    assert_eq!(tally.details[0].release, "bench@7");
}

/// `examples/bench` as a process of its own, ended by its pid.
struct Example(std::process::Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_example_answers_as_the_load_expects() {
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bench/app/server.py");
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let child = std::process::Command::new("/usr/bin/python3")
        .arg(script)
        .env("KILN_RELEASE", "bench@7")
        .env("PORT", address.port().to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("python3 is needed: scripts/install-test-deps installs it");
    let mut example = Example(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "the example does not listen");
        assert_eq!(example.0.try_wait().unwrap(), None, "the example ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    let tally = load(address, &Arc::new(Gate::new([7])), 1000);
    assert_eq!(tally.lost_by_kind(), "0", "{:?}", tally.details);

    // Asked to stop, it finishes what is in flight and ends by itself. By the second answer on another
    // connection, the slow request that was written before the first is in flight.
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /slow?ms=500 HTTP/1.1\r\nHost: bench\r\n\r\n")
        .unwrap();
    let mut other = Connection::open(address, TIMEOUT).unwrap();
    for _ in 0..2 {
        other.exchange(&Request::Hello, "bench").unwrap();
    }
    let pid = rustix::process::Pid::from_child(&example.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("slow 500\n"), "{answer:?}");
    assert!(example.0.wait().unwrap().success());
}
