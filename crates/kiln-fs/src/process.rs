//! Which process a pid means. The kernel gives a pid again to another process; with its start time and the boot it is unique,
//! and a pidfd keeps meaning the same process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The name of a process that holds for ever: for a file that another process reads later.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks from boot to its start: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl ProcessId {
    /// `None`: no such process lives. A zombie does not.
    ///
    /// # Errors
    ///
    /// `/proc` can't be read, as when no descriptor is left. That says nothing about the process.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let stat = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(start_time) = start_time(&stat)? else {
            return Ok(None);
        };
        let boot = boot_id()?;
        Ok(Some(Self {
            pid,
            start_time,
            boot,
        }))
    }

    /// This process.
    pub fn own() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self::of(pid)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether this very process lives at this moment. To do something to it, [`Process::find`] it.
    pub fn lives(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.as_ref() == Some(self))
    }
}

fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim_end().to_owned())
}

/// The process ended before its file was opened (ENOENT), or while it was read (ESRCH).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// `None`: it is a zombie.
fn start_time(stat: &[u8]) -> io::Result<Option<u64>> {
    // The second field is the program's name in brackets, which may itself hold brackets, spaces and what is no UTF-8.
    let fields = stat.rsplit(|byte| *byte == b')').next();
    let fields = String::from_utf8_lossy(fields.unwrap_or_default());
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    // The state was field 3.
    let start_time = fields.nth(18).and_then(|field| field.parse().ok());
    let start_time = start_time.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(start_time))
}

/// A process that can be signalled and waited for, and can't be mistaken for a later one of the same pid.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
}

impl Process {
    /// `None`: no such process lives.
    pub fn open(pid: i32) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        // Opened first, asked then: should the pid be given to another process in between, its identity is the other one's,
        // and the descriptor's process is known to have ended.
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            opened => opened?,
        };
        let Some(id) = ProcessId::of(pid)? else {
            return Ok(None);
        };
        let process = Self { id, pidfd };
        Ok((!process.has_ended()?).then_some(process))
    }

    /// The very process of this name. `None`: it does not live any more.
    pub fn find(id: &ProcessId) -> io::Result<Option<Self>> {
        Ok(Self::open(id.pid)?.filter(|process| process.id == *id))
    }

    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// False: it had ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub fn has_ended(&self) -> io::Result<bool> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits for its end, `timeout` at most. Whether it has ended; a signal to this thread may end the wait early with false.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = match timeout.map(Timespec::try_from) {
            Some(Ok(timeout)) => Some(timeout),
            // Longer than the kernel counts.
            Some(Err(_)) | None => None,
        };
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Readable when the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl From<Process> for OwnedFd {
    fn from(process: Process) -> Self {
        process.pidfd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn a_process_is_known_by_its_start_and_its_boot_as_well() {
        let own = ProcessId::own().unwrap();
        assert!(own.lives().unwrap());
        assert_ne!(
            ProcessId::of(1).unwrap().unwrap().start_time,
            own.start_time
        );
        assert_eq!(ProcessId::of(i32::MAX).unwrap(), None);
        for other in [
            ProcessId {
                start_time: own.start_time + 1,
                ..own.clone()
            },
            ProcessId {
                boot: "another".to_owned(),
                ..own.clone()
            },
        ] {
            assert!(!other.lives().unwrap());
            assert!(Process::find(&other).unwrap().is_none());
        }
        assert_eq!(Process::find(&own).unwrap().unwrap().id(), &own);
    }

    #[test]
    fn a_process_is_signalled_and_its_end_is_seen_once_it_is_a_zombie() {
        let (mut child, pid) = sleeper();
        let process = Process::open(pid).unwrap().unwrap();
        assert!(!process.has_ended().unwrap());
        assert!(process.signal(Signal::KILL).unwrap());
        assert!(process.wait(None).unwrap());
        // Nobody has waited for it yet.
        assert_eq!(ProcessId::of(pid).unwrap(), None);
        assert!(Process::open(pid).unwrap().is_none());
        child.wait().unwrap();
        assert!(!process.signal(Signal::KILL).unwrap());
        assert!(!process.id().lives().unwrap());
    }

    #[test]
    fn a_wait_ends_with_its_time() {
        let (mut child, pid) = sleeper();
        let process = Process::open(pid).unwrap().unwrap();
        assert!(!process.wait(Some(Duration::from_millis(10))).unwrap());
        child.kill().unwrap();
        assert!(process.wait(Some(Duration::MAX)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn the_name_of_a_program_may_be_anything() {
        let stat = b"7 (a) Z (\xff b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(start_time(stat).unwrap(), Some(4242));
        assert_eq!(start_time(b"7 (x) Z 1 7").unwrap(), None);
        assert!(start_time(b"").is_err());
    }

    #[test]
    fn the_form_on_disk_stays() {
        let id = ProcessId {
            pid: 7,
            start_time: 42,
            boot: "b".to_owned(),
        };
        let json = r#"{"pid":7,"start_time":42,"boot":"b"}"#;
        assert_eq!(serde_json::to_string(&id).unwrap(), json);
        assert_eq!(serde_json::from_str::<ProcessId>(json).unwrap(), id);
    }
}
