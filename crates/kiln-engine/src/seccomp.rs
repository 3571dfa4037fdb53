//! The system calls that an instance may make, by several filters, of whose answers the kernel takes the one that allows least:
//!
//! - a list of what is allowed; every other call is refused with EPERM;
//! - calls that are newer than the list get ENOSYS, as on an older kernel: programs try such a call and do without, where EPERM
//!   would be a failure;
//! - sockets of other families than the internet's, the local one and the kernel's own get EAFNOSUPPORT. AF_VSOCK reaches the
//!   machine's hypervisor past network namespace and firewall, others reach drivers that few look at;
//! - clone3 gets ENOSYS, so that libraries fall back to clone, whose flags a filter can see (with EPERM threads could not be
//!   made at all).
//!
//! The list is what programs of a server need, and about what docker's default profile allows; it leaves out whatever mounts,
//! changes namespaces, loads code into the kernel, sets clocks, or opens files by handle.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("kiln's system call filter does not know this processor")]
    Architecture,
    #[error("the system call filter can't be built")]
    Build(#[source] seccompiler::BackendError),
    #[error("the kernel refuses the system call filter")]
    Install(#[source] seccompiler::Error),
}

/// The filters, ready to be installed: built before the fork, where allocation is harmless.
pub(crate) struct Filters {
    list: BpfProgram,
    newer: BpfProgram,
    families: BpfProgram,
    clone3: BpfProgram,
    /// Of what has nothing that has to outlive a power failure.
    syncs: Option<BpfProgram>,
}

const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

impl Filters {
    /// `build`: for the steps of a bake, which also change root and make device-less nodes.
    pub(crate) fn new(build: bool) -> Result<Self, SeccompError> {
        let arch: TargetArch = std::env::consts::ARCH
            .try_into()
            .map_err(|_| SeccompError::Architecture)?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
            .iter()
            .chain(UNNAMED)
            .chain(ARCHITECTURE)
            .map(|call| (*call, Vec::new()))
            .collect();
        if build {
            rules.insert(libc::SYS_chroot, Vec::new());
        }
        let no_namespace = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(NAMESPACES),
            0,
        )
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(SeccompError::Build)?;
        rules.insert(libc::SYS_clone, vec![no_namespace]);
        // Answered by the second filter.
        rules.insert(libc::SYS_clone3, Vec::new());
        Ok(Self {
            list: program(
                arch,
                rules,
                SeccompAction::Errno(libc::EPERM as u32),
                SeccompAction::Allow,
            )?,
            newer: newer(),
            families: program(
                arch,
                BTreeMap::from([
                    (libc::SYS_socket, vec![other_family()?]),
                    (libc::SYS_socketpair, vec![other_family()?]),
                ]),
                SeccompAction::Allow,
                SeccompAction::Errno(libc::EAFNOSUPPORT as u32),
            )?,
            clone3: program(
                arch,
                BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
                SeccompAction::Allow,
                SeccompAction::Errno(libc::ENOSYS as u32),
            )?,
            syncs: None,
        })
    }

    /// Calls that wait for the disk are answered at once, with success: what a step writes is nobody's until it is a layer, which
    /// the store syncs. A package manager makes hundreds of them.
    pub(crate) fn without_syncs(mut self) -> Result<Self, SeccompError> {
        let arch: TargetArch = std::env::consts::ARCH
            .try_into()
            .map_err(|_| SeccompError::Architecture)?;
        let calls = SYNCS.iter().map(|call| (*call, Vec::new())).collect();
        // Of several filters' answers the kernel takes the one that allows least; an error, even 0, is less than to allow.
        let done = SeccompAction::Errno(0);
        self.syncs = Some(program(arch, calls, SeccompAction::Allow, done)?);
        Ok(self)
    }

    /// From now on this process and all it starts are bound. Needs no_new_privs.
    pub(crate) fn install(&self) -> Result<(), SeccompError> {
        // Of two that refuse, the error of the one that was installed later is told: the list's is the general one.
        for filter in [&self.list, &self.newer, &self.families, &self.clone3] {
            seccompiler::apply_filter(filter).map_err(SeccompError::Install)?;
        }
        match &self.syncs {
            Some(syncs) => seccompiler::apply_filter(syncs).map_err(SeccompError::Install),
            None => Ok(()),
        }
    }
}

/// The newest call that the list was made with in view: removexattrat(2), Linux 6.13. From 424 on, a call has the same number on
/// every architecture.
const NEWEST: u32 = 466;

/// What is newer is answered as by a kernel that does not have it. By hand, because it compares for order: the number of the call
/// is the first field of `struct seccomp_data`, seccomp(2).
fn newer() -> BpfProgram {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_IF_GREATER, 0, 1, NEWEST),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// A call whose first argument is no family that an instance may have a socket of.
fn other_family() -> Result<SeccompRule, SeccompError> {
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let is_not = |family: i32| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    let conditions = families.map(is_not).into_iter().collect::<Result<_, _>>();
    conditions
        .and_then(SeccompRule::new)
        .map_err(SeccompError::Build)
}

fn program(
    arch: TargetArch,
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    SeccompFilter::new(rules, mismatch, on_match, arch)
        .and_then(BpfProgram::try_from)
        .map_err(SeccompError::Build)
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

const SYNCS: &[i64] =
    calls!(SYS_fdatasync SYS_fsync SYS_msync SYS_sync SYS_sync_file_range SYS_syncfs);

#[rustfmt::skip]
const ALLOWED: &[i64] = calls!(
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_getres SYS_clock_gettime
    SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl
    SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2
    SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync
    SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex
    SYS_futex_waitv SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit
    SYS_get_robust_list SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr
    SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_lgetxattr
    SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr
    SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv
    SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_personality
    SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_pselect6
    SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg
    SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending
    SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
    SYS_sched_yield SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setfsgid
    SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid
    SYS_setreuid SYS_setrlimit SYS_set_robust_list SYS_setsid SYS_setsockopt SYS_set_tid_address SYS_setuid SYS_setxattr SYS_shmat
    SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socket SYS_socketpair SYS_splice SYS_statfs
    SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
    SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times
    SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit SYS_landlock_add_rule SYS_landlock_create_ruleset
    SYS_landlock_restrict_self SYS_memfd_secret SYS_mseal SYS_name_to_handle_at SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_seccomp
);

/// cachestat, map_shadow_stack, futex_wake, futex_wait, futex_requeue, setxattrat, getxattrat, listxattrat, removexattrat: too new
/// to have names in libc.
const UNNAMED: &[i64] = &[451, 453, 454, 455, 456, 463, 464, 465, 466];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ARCHITECTURE: &[i64] = calls!(
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_fork
    SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_open SYS_pause
    SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime
    SYS_utimes SYS_vfork
);

#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rights, sys};

    /// What `work` gives in a thread that is bound as an instance is.
    fn bound<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            let filters = Filters::new(false).unwrap();
            rights::no_new_privileges().unwrap();
            filters.install().unwrap();
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn sockets_are_of_the_usual_families_only() {
        use rustix::io::Errno;
        use rustix::net::{AddressFamily, SocketType, socket};
        let results = bound(|| {
            let made = |family| socket(family, SocketType::DGRAM, None).map(|_| ());
            [
                AddressFamily::UNIX,
                AddressFamily::INET,
                AddressFamily::INET6,
                AddressFamily::VSOCK,
                AddressFamily::from_raw(libc::AF_ALG as u16),
                AddressFamily::PACKET,
            ]
            .map(made)
        });
        let refused = Err(Errno::AFNOSUPPORT);
        assert_eq!(results, [Ok(()), Ok(()), Ok(()), refused, refused, refused]);
    }

    #[test]
    fn what_is_refused_is_told_from_what_is_not_there() {
        let errors = bound(|| {
            [
                libc::SYS_mount,
                libc::SYS_open_by_handle_at,
                libc::SYS_clone3,
                i64::from(NEWEST) + 1,
                // The other numbering of the same processor.
                0x4000_0000 | libc::SYS_read,
                libc::SYS_io_setup,
            ]
            .map(|call| sys::call_without_arguments(call).raw_os_error())
        });
        let [mount, by_handle, clone3, newer, other, allowed] = errors.map(Option::unwrap);
        assert_eq!((mount, by_handle), (libc::EPERM, libc::EPERM));
        assert_eq!([clone3, newer, other], [libc::ENOSYS; 3]);
        // The kernel itself was asked.
        assert!([libc::EINVAL, libc::EFAULT].contains(&allowed), "{allowed}");
    }

    #[test]
    fn a_step_does_not_wait_for_the_disk() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        // A pipe can't be synced: so the kernel was not asked.
        assert!(rustix::fs::fsync(&read).is_err());
        let synced = std::thread::spawn(move || {
            let filters = Filters::new(true).and_then(Filters::without_syncs).unwrap();
            rights::no_new_privileges().unwrap();
            filters.install().unwrap();
            rustix::fs::fsync(&read)
        });
        synced.join().unwrap().unwrap();
    }
}
