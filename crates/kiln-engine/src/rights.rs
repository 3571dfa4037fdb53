//! What a process may do, and what it gives up.

use std::io;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Becomes `uid`:`gid` with exactly `groups`. Of a process with one thread.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Becomes a user who can never have more than `capabilities`: root has exactly these, any other user none, and what it
/// executes gets no more than the program's file has of them.
pub(crate) fn become_user_with(
    capabilities: CapabilitySet,
    uid: u32,
    gid: u32,
    groups: &[u32],
) -> io::Result<()> {
    // The bounding set is dropped while there is still the right to drop it; the rest after the last use of setuid.
    let during = CapabilitySet::SETGID | CapabilitySet::SETUID | CapabilitySet::SETPCAP;
    drop_bounding(capabilities);
    keep(capabilities | during)?;
    become_user(uid, gid, groups)?;
    if uid == 0 {
        keep(capabilities)
    } else {
        // A user other than root has lost them with setresuid: nothing is kept on purpose.
        keep(CapabilitySet::empty())
    }
}

/// Keeps exactly the capabilities `kept`.
pub(crate) fn limit_capabilities(kept: CapabilitySet) -> io::Result<()> {
    drop_bounding(kept);
    keep(kept)
}

fn drop_bounding(kept: CapabilitySet) {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(capability) {
            // EINVAL: a number that this kernel does not have.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    // It may fail on kernels without ambient capabilities only.
    let _ = clear_ambient_capability_set();
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// From now on no program executed gets more rights than this process.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// This process gets SIGKILL when its parent ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// umask, core size and the like: what must not be inherited from whoever started kiln.
pub(crate) fn reset_limits() {
    let limits = [
        (Resource::Core, Some(0), None),
        (Resource::Nofile, Some(1024), Some(1_048_576)),
    ];
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for (resource, current, maximum) in limits {
        // Where the hard limit is lower, the one that was inherited stays.
        let _ = setrlimit(resource, Rlimit { current, maximum });
    }
}
