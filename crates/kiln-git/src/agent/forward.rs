//! `RUN --mount=type=ssh`: a socket inside that leads to the caller's SSH agent, or to one of ours that has the caller's keys. The
//! caller's sees this process, since it answers nobody but its own user; its keys stay in it.

use std::fs::{self, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::which::SshAgent;

/// At once, of one step.
const CONNECTIONS_MAX: usize = 32;

/// How soon the end of the step is seen.
const TURN: Duration = Duration::from_millis(50);

/// A socket that is answered until this is dropped.
pub struct ForwardedAgent {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ForwardedAgent {
    /// A socket `name` in `folder` that leads to `agent`.
    pub fn forward(
        folder: &Path,
        name: &str,
        agent: SshAgent,
        (mode, uid, gid): (u32, u32, u32),
    ) -> io::Result<Self> {
        // A socket's path has 107 bytes at most, and a data root may be anywhere.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let at = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&at);
        let listener = UnixListener::bind(format!("/proc/self/fd/{number}/{name}"))?;
        let path = folder.join(name);
        chown(&path, Some(uid), Some(gid))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut joined: Vec<JoinHandle<()>> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                joined.retain(|one| !one.is_finished());
                match listener.accept() {
                    // A step may open any number: what is beyond is closed at once.
                    Ok((inside, _)) if joined.len() < CONNECTIONS_MAX => {
                        let agent = agent.clone();
                        let join = move || {
                            // It ends with either end.
                            let _ = join(inside, &agent);
                        };
                        joined.extend(std::thread::Builder::new().spawn(join));
                    }
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(TURN),
                }
            }
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for ForwardedAgent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn join(inside: UnixStream, agent: &SshAgent) -> io::Result<()> {
    inside.set_nonblocking(false)?;
    let agent = match agent {
        SshAgent::Socket(path) => path,
        SshAgent::Keys(keys) => return keys.answer(inside),
    };
    let agent = UnixStream::connect(agent)?;
    let (mut asks, mut asked) = (inside.try_clone()?, agent.try_clone()?);
    let asking = std::thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(Shutdown::Write);
    })?;
    let (mut answers, mut answered) = (agent, inside);
    let _ = io::copy(&mut answers, &mut answered);
    let _ = answered.shutdown(Shutdown::Both);
    let _ = asking.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_agent_is_asked_through_the_socket_of_a_step() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let inside = folder.path().join("x".repeat(120));
        fs::create_dir(&inside).unwrap();
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 3];
            stream.read_exact(&mut asked).unwrap();
            asked.reverse();
            stream.write_all(&asked).unwrap();
        });
        let agent =
            ForwardedAgent::forward(&inside, "s", SshAgent::Socket(socket), (0o640, 7, 8)).unwrap();
        let there = fs::metadata(inside.join("s")).unwrap();
        assert_eq!(
            (there.mode() & 0o777, there.uid(), there.gid()),
            (0o640, 7, 8)
        );
        let link = folder.path().join("short");
        std::os::unix::fs::symlink(&inside, &link).unwrap();
        let mut client = UnixStream::connect(link.join("s")).unwrap();
        client.write_all(b"abc").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"cba");
        answering.join().unwrap();
        drop(agent);
        assert!(UnixStream::connect(link.join("s")).is_err());
    }
}
