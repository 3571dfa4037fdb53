//! Probes: one task for each probe of each instance. Samples stay here; the owner hears of transitions.
//!
//! A probe is a GET over a connection of its own, follows no redirect, and reads no more of the answer
//! than its status line.

use std::net::SocketAddr;
use std::time::Duration;

use kiln_model::HttpProbe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// Until the first success an instance is probed this often: a start is not made longer by its period.
const STARTUP_PERIOD: Duration = Duration::from_millis(50);
/// A status line that is longer is none.
const STATUS_LINE_LIMIT: usize = 512;
const CONNECT_PROBE: Duration = Duration::from_secs(1);

/// How an instance is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Http(HttpProbe),
    /// The port accepts a connection.
    Connect,
}

impl Question {
    fn period(&self) -> Duration {
        match self {
            Self::Http(probe) => probe.period,
            Self::Connect => CONNECT_PROBE,
        }
    }

    fn thresholds(&self) -> (u32, u32) {
        match self {
            Self::Http(probe) => (probe.successes.max(1), probe.failures.max(1)),
            Self::Connect => (1, 3),
        }
    }

    async fn ask(&self, address: SocketAddr) -> bool {
        match self {
            Self::Http(probe) => timeout(probe.timeout, get(address, &probe.path))
                .await
                .is_ok_and(|answer| answer.is_ok_and(|status| (200..300).contains(&status))),
            Self::Connect => timeout(CONNECT_PROBE, TcpStream::connect(address))
                .await
                .is_ok_and(|connected| connected.is_ok()),
        }
    }
}

/// Probes until it is dropped; `change` hears each transition. `passing`: what was last known.
pub(crate) async fn run(
    address: SocketAddr,
    question: Question,
    mut passing: bool,
    mut change: impl FnMut(bool),
) {
    let (successes, failures) = question.thresholds();
    let mut ever = passing;
    let mut row = 0;
    loop {
        let started = Instant::now();
        let success = question.ask(address).await;
        crate::crash::point("probe");
        if success == passing {
            row = 0;
        } else {
            row += 1;
            if row >= if success { successes } else { failures } {
                passing = success;
                ever |= success;
                row = 0;
                change(success);
            }
        }
        let period = if ever {
            question.period()
        } else {
            STARTUP_PERIOD.min(question.period())
        };
        sleep_until(started + period).await;
    }
}

/// The status of `GET path`.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kiln-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::with_capacity(STATUS_LINE_LIMIT);
    let mut chunk = [0; STATUS_LINE_LIMIT];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_LIMIT {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        line.extend_from_slice(&chunk[..read]);
    }
    status(&line).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidData))
}

/// RFC 9112, section 4: `HTTP-version SP status-code SP`.
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.split(|&b| b == b'\n').next()?).ok()?;
    let rest = line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let code = rest.get(..3)?;
    if !code.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    code.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use tokio::net::TcpListener;

    #[test]
    fn only_a_status_line_is_an_answer() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503 no\r\nX: 200"), Some(503));
        for wrong in [
            &b""[..],
            b"HTTP/1.1 2x0 OK",
            b"SSH-2.0-x\r\n",
            b"HTTP/1.1 20",
            b"HTTP/2 200",
        ] {
            assert_eq!(status(wrong), None);
        }
    }

    /// Scenario 24: health flaps at the switch; one success is not soak.
    #[tokio::test(flavor = "current_thread")]
    async fn a_transition_needs_its_successes_in_a_row() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = [500, 200, 500, 200, 200, 302, 200, 500, 500, 500];
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 {answer} x\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let probe = HttpProbe {
            path: "/ready".into(),
            period: Duration::from_millis(5),
            timeout: Duration::from_secs(1),
            successes: 2,
            failures: 3,
        };
        let seen = Rc::new(RefCell::new(Vec::new()));
        let changes = Rc::clone(&seen);
        let probing = run(address, Question::Http(probe), false, move |ready| {
            changes.borrow_mut().push(ready);
        });
        let both = async {
            while seen.borrow().len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = probing => unreachable!("a probe never ends by itself"),
            () = tokio::time::timeout(Duration::from_secs(10), both).map_expect() => {}
        }
        assert_eq!(*seen.borrow(), [true, false]);
    }

    trait MapExpect {
        async fn map_expect(self);
    }

    impl<F: Future<Output = Result<(), tokio::time::error::Elapsed>>> MapExpect for F {
        async fn map_expect(self) {
            self.await.expect("two transitions within ten seconds");
        }
    }
}
