//! An instance: a small HTTP server whose paths do what real ones do, well or badly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    name: String,
    requests: AtomicU64,
    connections: AtomicU64,
    ended: AtomicBool,
    /// What `/held` waits for.
    gate: (Mutex<bool>, Condvar),
    open: Mutex<Vec<TcpStream>>,
}

impl Origin {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            name: name.to_owned(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            gate: (Mutex::new(false), Condvar::new()),
            open: Mutex::new(Vec::new()),
        });
        let thread = std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for stream in listener.incoming() {
                    if state.ended.load(SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    state.connections.fetch_add(1, SeqCst);
                    state.open.lock().unwrap().push(stream.try_clone().unwrap());
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || {
                        // A peer that went away is what many tests do.
                        let _ = serve(&state, stream);
                    });
                }
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(SeqCst)
    }

    /// Lets `/held` answer.
    pub(crate) fn open_gate(&self) {
        *self.state.gate.0.lock().unwrap() = true;
        self.state.gate.1.notify_all();
    }

    /// Closes every connection that it has, as an instance with a short idle limit does.
    pub(crate) fn close_connections(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        self.open_gate();
        self.close_connections();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(state: &State, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        state.requests.fetch_add(1, SeqCst);
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let field = |name: &str| {
            head.lines().find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        if path == "/socket" {
            writer.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
            let mut bytes = [0; 1024];
            loop {
                let read = reader.read(&mut bytes)?;
                if read == 0 {
                    return Ok(());
                }
                writer.write_all(&bytes[..read])?;
            }
        }
        let mut body = Vec::new();
        if let Some(length) = field("content-length") {
            body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body)?;
        } else if field("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                let mut chunk = vec![0; length + 2];
                reader.read_exact(&mut chunk)?;
                if length == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..length]);
            }
        }
        let answer = |text: &[u8]| {
            [
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len()).as_bytes(),
                text,
            ]
            .concat()
        };
        match path.split('?').next().unwrap_or_default() {
            "/head" => writer.write_all(&answer(head.as_bytes()))?,
            "/echo" => writer.write_all(&answer(&body))?,
            "/slow" => {
                std::thread::sleep(Duration::from_millis(300));
                writer.write_all(&answer(state.name.as_bytes()))?;
            }
            "/held" => {
                let mut open = state.gate.0.lock().unwrap();
                while !*open {
                    open = state.gate.1.wait(open).unwrap();
                }
                drop(open);
                writer.write_all(&answer(state.name.as_bytes()))?;
            }
            "/held-chunk" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n")?;
                let mut open = state.gate.0.lock().unwrap();
                while !*open {
                    open = state.gate.1.wait(open).unwrap();
                }
                drop(open);
                writer.write_all(b"7\r\nsecond\n\r\n0\r\n\r\n")?;
            }
            "/chunked" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                let piece = vec![b'x'; 8192];
                for _ in 0..32 {
                    writer.write_all(b"2000\r\n")?;
                    writer.write_all(&piece)?;
                    writer.write_all(b"\r\n")?;
                }
                writer.write_all(b"0\r\n\r\n")?;
            }
            "/large" => writer.write_all(&answer(&vec![b'l'; 64 << 20]))?,
            "/dies" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")?;
                return writer.shutdown(Shutdown::Both);
            }
            "/dies-chunked" => {
                writer.write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nthis\r\n",
                )?;
                return writer.shutdown(Shutdown::Both);
            }
            "/closes" => return writer.shutdown(Shutdown::Both),
            _ => writer.write_all(&answer(state.name.as_bytes()))?,
        }
    }
}
