//! Giving up everything that serving doesn't need, before the first byte of a stranger is read.
//!
//! Must run while the process has one thread: each of these is a property of the calling thread, inherited by
//! those that it starts.

use std::collections::BTreeMap;

use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::ProxyError;

pub(super) fn give_up(uid: u32, gid: u32) -> Result<(), ProxyError> {
    let step = |step| {
        move |error: rustix::io::Errno| ProxyError::Privileges {
            step,
            source: error.into(),
        }
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).map_err(step("leaving root's groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(step("changing the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(step("changing the user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(step("dropping capabilities"))?;
    set_no_new_privs(true).map_err(step("forbidding new privileges"))?;
    seccompiler::apply_filter(&filter()?).map_err(ProxyError::Seccomp)
}

/// Whatever is not named is refused with EPERM: no program is executed, no file system mounted, no process traced
/// or signalled but the own.
fn filter() -> Result<BpfProgram, ProxyError> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(ProxyError::Filter)?;
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> = allowed()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    // EPERM, not ENOSYS: but for the calls below, which libc falls back from only at ENOSYS, it is all the same.
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(ProxyError::Filter)
}

fn allowed() -> Vec<i64> {
    let mut calls = vec![
        // Sockets and events.
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_listen,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_eventfd2,
        libc::SYS_ppoll,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        // Descriptors, and the files of the own folder.
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_flock,
        libc::SYS_ftruncate,
        libc::SYS_getdents64,
        libc::SYS_ioctl,
        libc::SYS_lseek,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_pipe2,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_read,
        libc::SYS_readlinkat,
        libc::SYS_readv,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_statx,
        libc::SYS_unlinkat,
        libc::SYS_write,
        libc::SYS_writev,
        // Memory, threads, time, chance.
        libc::SYS_brk,
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_get_robust_list,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_gettimeofday,
        libc::SYS_madvise,
        libc::SYS_membarrier,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_nanosleep,
        libc::SYS_prctl,
        libc::SYS_prlimit64,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_uname,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_epoll_wait,
        libc::SYS_fstat,
        libc::SYS_lstat,
        libc::SYS_open,
        libc::SYS_pipe,
        libc::SYS_poll,
        libc::SYS_rename,
        libc::SYS_stat,
        libc::SYS_unlink,
    ]);
    calls.sort_unstable();
    calls.dedup();
    calls
}
