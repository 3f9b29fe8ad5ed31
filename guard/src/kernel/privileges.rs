//! What this process may do, and giving up what it does not need.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What a sidecar needs once its programs are loaded: signals, other users'
/// descriptors, `SOCK_DESTROY`, probes of low ports, BPF maps, and a place
/// before ordinary threads while a run waits.
const NEEDED: CapabilitySet = CapabilitySet::KILL
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_NICE);

/// Gives up what a sidecar does not need, for the calling thread and the
/// threads and processes that it starts from now on. A program that is executed as
/// the superuser has it again, unless the unit sets `NoNewPrivileges=`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn give_up_capabilities() -> io::Result<()> {
    keep(NEEDED)
}

/// What the one thread needs that speaks to service managers: a user's bus knows
/// a client by its user, and the start times of other users' processes may be
/// hidden (`hidepid=`).
const FOR_UNITS: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SYS_PTRACE);

/// As [`give_up_capabilities`], for the thread that speaks to service managers.
///
/// # Errors
///
/// When the kernel refuses.
pub fn keep_for_units() -> io::Result<()> {
    keep(FOR_UNITS)
}

fn keep(these: CapabilitySet) -> io::Result<()> {
    let has = capabilities(None)?;
    let kept = CapabilitySets {
        effective: has.effective & these,
        permitted: has.permitted & these,
        inheritable: has.inheritable & these,
    };
    Ok(set_capabilities(None, kept)?)
}

/// Allows as many descriptors as the hard limit does.
///
/// # Errors
///
/// When the kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_gone_for_good() {
        // The capabilities of a thread are its own.
        std::thread::spawn(|| {
            give_up_capabilities().expect("nobody is kept from giving up");
            let left = capabilities(None).expect("capabilities");
            assert!(NEEDED.contains(left.permitted), "{left:?}");
            assert!(!left.effective.contains(CapabilitySet::SYS_ADMIN));
        })
        .join()
        .expect("the thread");
    }

    #[test]
    fn no_thread_but_the_one_for_units_may_become_another_user() {
        std::thread::spawn(|| {
            keep_for_units().expect("nobody is kept from giving up");
            let left = capabilities(None).expect("capabilities");
            assert!(FOR_UNITS.contains(left.permitted), "{left:?}");
        })
        .join()
        .expect("the thread");
        assert!(!NEEDED.contains(CapabilitySet::SETUID));
    }
}
