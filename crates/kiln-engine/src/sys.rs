//! The calls that rustix does not have, or has not for every signal. Each block says why it is sound.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::thread::UnshareFlags;

/// What a fork is in.
pub(crate) enum Fork {
    Child,
    Parent(i32),
}

/// fork(2) with namespaces: `flags` are `CLONE_NEW*`. Refused in a process with several threads.
pub(crate) fn fork_into(flags: i32) -> io::Result<Fork> {
    if threads()? != 1 {
        return Err(io::Error::other(
            "a process with several threads can't be forked",
        ));
    }
    // SAFETY: without CLONE_VM and with a null stack, clone is fork: the child has its own copy of everything. This process has
    // one thread, as was just seen, and only that one could make another: so no lock is held by a thread that the child lacks.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags | libc::SIGCHLD),
            0,
            0,
            0,
            0,
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// How many threads this process has.
fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Ends this process without running destructors or exit handlers: the end of a forked child.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(code) }
}

/// execve(2). Returns only when it failed.
pub(crate) fn exec(program: &Path, argv: &[String], env: &[(String, String)]) -> io::Error {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
    let build = || -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
        let argv = argv
            .iter()
            .map(|arg| text(arg.as_bytes()))
            .collect::<io::Result<_>>()?;
        let env = env
            .iter()
            .map(|(name, value)| text(format!("{name}={value}").as_bytes()))
            .collect::<io::Result<_>>()?;
        Ok((text(program.as_os_str().as_bytes())?, argv, env))
    };
    let (program, argv, env) = match build() {
        Ok(built) => built,
        Err(error) => return error,
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(&argv), pointers(&env));
    // SAFETY: all three are nul-terminated and outlive the call; both arrays end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// All signals are blocked from now on, to be read with [`wait_signal`] or a signal descriptor.
pub(crate) fn block_all_signals() {
    // SAFETY: the set is initialised by sigfillset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// No signal is blocked or ignored: what a program expects to start with.
pub(crate) fn reset_signals() {
    // SAFETY: the set is initialised by sigemptyset before it is read; SIG_DFL is a valid disposition of every signal.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Waits for a blocked signal; `timeout_ms` negative: without end. `None`: the time is over.
pub(crate) fn wait_signal(timeout_ms: i64) -> Option<i32> {
    // SAFETY: the set is initialised, info and timeout are valid for the call.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let signal = if timeout_ms < 0 {
            libc::sigwaitinfo(&raw const set, &raw mut info)
        } else {
            let timeout = libc::timespec {
                tv_sec: timeout_ms / 1000,
                tv_nsec: timeout_ms % 1000 * 1_000_000,
            };
            libc::sigtimedwait(&raw const set, &raw mut info, &raw const timeout)
        };
        (signal > 0).then_some(signal)
    }
}

/// A descriptor that is readable when one of the blocked `signals` is pending.
pub(crate) fn signal_descriptor(signals: &[i32]) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the set is initialised; a descriptor that signalfd returns is new and ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(std::os::fd::OwnedFd::from_raw_fd(fd))
        }
    }
}

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) signal: i32,
    /// What was sent with it by [`signal_with_value`] or sigqueue(3).
    pub(crate) value: Option<i32>,
}

/// The next pending signal of a signal descriptor.
pub(crate) fn read_signal(descriptor: &impl std::os::fd::AsFd) -> Option<Received> {
    let mut info = [0_u8; 128];
    let read = rustix::io::read(descriptor, &mut info).ok()?;
    // `struct signalfd_siginfo`, signalfd(2): ssi_signo, ssi_errno, ssi_code; ssi_int after eight more fields.
    let field =
        |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    (read == info.len()).then(|| Received {
        signal: field(0),
        value: (field(8) == SI_QUEUE).then(|| field(44)),
    })
}

/// Sent by sigqueue(3) or its like: asm-generic/siginfo.h.
const SI_QUEUE: i32 = -1;

/// Sends a signal with a value to the process of a pidfd.
pub(crate) fn signal_with_value(
    pidfd: &impl std::os::fd::AsFd,
    signal: i32,
    value: i32,
) -> io::Result<()> {
    /// `siginfo_t` with the fields that SI_QUEUE has, on 64 bits.
    #[repr(C)]
    struct Info {
        signal: i32,
        errno: i32,
        code: i32,
        padding: i32,
        pid: i32,
        uid: u32,
        /// The `int` of the union.
        value: i32,
        padding_of_value: i32,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Info>() == 128);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let info = Info {
        signal,
        errno: 0,
        code: SI_QUEUE,
        padding: 0,
        pid: own,
        uid: rustix::process::getuid().as_raw(),
        value,
        padding_of_value: 0,
        rest: [0; 12],
    };
    // SAFETY: the descriptor is open during the call; info has the kernel's layout and size and outlives it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            &raw const info,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// kill(2) of a child that was not waited for, or of the application by its init: also with signals that have no name.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Every descriptor from `first` on is closed when a program is executed.
pub(crate) fn close_from_on_exec(first: u32) {
    // SAFETY: plain integers; nothing is closed now.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Leaves namespaces of its parent for new ones; a process with one thread.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags of this crate name namespaces, never the table of descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags - UnshareFlags::FILES) }?)
}

/// The number of a loop device that nothing uses at this moment; `control` is /dev/loop-control.
pub(crate) fn free_loop(control: &File) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // SAFETY: the descriptor is open during the call, and this request has no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Makes `device` show `backing`, read-only, until nobody has it open or mounted. `EBUSY`: another one was faster.
pub(crate) fn configure_loop(device: &File, backing: &File) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// `struct loop_config` of linux/loop.h, with the fields of its `struct loop_info64` that are not used here left out.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        before_flags: [u64; 6],
        encrypt_key_size: u32,
        flags: u32,
        names_and_key: [u8; 160],
        init: [u64; 2],
        reserved: [u64; 8],
    }
    const _: () = assert!(size_of::<Config>() == 304);
    let config = Config {
        fd: backing.as_raw_fd() as u32,
        block_size: 0,
        before_flags: [0; 6],
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: both descriptors are open during the call; config has the kernel's layout and outlives it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel says to a call whose arguments are all zero.
#[cfg(test)]
pub(crate) fn call_without_arguments(number: i64) -> io::Error {
    // SAFETY: the tests name calls that do nothing with null pointers and zeros but refuse them.
    unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    io::Error::last_os_error()
}
