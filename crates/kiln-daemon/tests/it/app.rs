//! The application inside the instances: a small HTTP server whose behaviour comes from its environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static READY: AtomicBool = AtomicBool::new(true);

/// `BEHAVIOUR`: `exit` (ends at once, saying why), `never-ready`, `dies-after-switch`, or nothing.
pub(crate) fn run() -> ! {
    let behaviour = std::env::var("BEHAVIOUR").unwrap_or_default();
    if behaviour == "exit" {
        println!("the configuration is missing");
        eprintln!("giving up");
        std::process::exit(3);
    }
    READY.store(behaviour != "never-ready", Ordering::SeqCst);
    let port = std::env::var("PORT")
        .expect("kiln gives PORT")
        .parse::<u16>()
        .expect("a number");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free in here");
    println!("listening as {}", release());
    let began = Instant::now();
    for stream in listener.incoming().flatten() {
        let behaviour = behaviour.clone();
        std::thread::spawn(move || {
            // A client that goes away is its own business.
            let _ = serve(stream, &behaviour, began);
        });
    }
    std::process::exit(0)
}

fn call(place: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(place)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn release() -> String {
    std::env::var("KILN_RELEASE").unwrap_or_default()
}

fn serve(stream: TcpStream, behaviour: &str, began: Instant) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (status, answer) = match path.as_str() {
            "/ready" if READY.load(Ordering::SeqCst) => (200, b"ready".to_vec()),
            "/ready" => (503, b"not ready".to_vec()),
            "/unready" => {
                READY.store(false, Ordering::SeqCst);
                (200, b"ok".to_vec())
            }
            "/slow" => {
                std::thread::sleep(Duration::from_millis(500));
                (200, release().into_bytes())
            }
            "/echo" => (200, body),
            "/env" => (200, std::env::var("MARK").unwrap_or_default().into_bytes()),
            "/half" => {
                // Dies in the middle of an answer.
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")?;
                stream.flush()?;
                std::process::exit(9);
            }
            "/die" => std::process::exit(7),
            // Says so many lines of a hundred bytes before it answers.
            path if path.starts_with("/say/") => {
                let count: u64 = path["/say/".len()..].parse().unwrap_or(0);
                let mut out = std::io::stdout().lock();
                for number in 0..count {
                    writeln!(out, "{number:>99}")?;
                }
                (200, Vec::new())
            }
            // No answer at all.
            "/drop" => return Ok(()),
            // Asks another service, as its clients inside do.
            path if path.starts_with("/call/") => match call(&path["/call/".len()..]) {
                Ok(answer) => (200, answer),
                Err(error) => (502, error.to_string().into_bytes()),
            },
            _ => (200, release().into_bytes()),
        };
        if behaviour == "dies-after-switch"
            && path == "/"
            && began.elapsed() > Duration::from_millis(10)
        {
            std::process::exit(8);
        }
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nX-Release: {}\r\n\r\n",
            answer.len(),
            release()
        )?;
        stream.write_all(&answer)?;
    }
}
