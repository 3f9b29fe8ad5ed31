//! Not being ended in the middle of something that must be undone.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use tracing::debug;

/// What people and service managers end a process with.
const SIGNALS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Bits of the signals that came meanwhile.
static CAME: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(signal: libc::c_int) {
    CAME.fetch_or(1 << signal, Ordering::Relaxed);
}

/// Signals that end this process wait until this is dropped, and then come. Only
/// one at a time: it is for moments.
#[derive(Debug)]
pub(super) struct Deferred {
    before: Vec<(Signal, SigAction)>,
}

impl Deferred {
    /// Those that cannot be deferred are not; the kernel refuses none of them.
    pub(super) fn begin() -> Self {
        let handler = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        let defer = |signal| {
            // SAFETY: the handler sets bits of an atomic number and does nothing else.
            let before = unsafe { sigaction(signal, &handler) };
            before
                .inspect_err(|error| debug!(%error, %signal, "not deferred"))
                .ok()
                .map(|before| (signal, before))
        };
        Self { before: SIGNALS.into_iter().filter_map(defer).collect() }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: it is what was there before.
            let restored = unsafe { sigaction(*signal, before) };
            debug_assert!(restored.is_ok(), "the kernel took it before");
        }
        let came = CAME.swap(0, Ordering::Relaxed);
        for (signal, _) in &self.before {
            if came & (1 << *signal as u32) != 0 {
                // Whoever handles it does so now; else this is the end.
                let _ended = raise(*signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;
    use crate::kernel::sandbox::alone;

    #[test]
    fn a_signal_that_ends_the_process_waits_for_the_end_of_the_moment() {
        let _alone = alone();
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        // SAFETY: the child calls nothing that needs what another thread may hold.
        match unsafe { fork() }.expect("a fork") {
            ForkResult::Child => {
                let deferred = Deferred::begin();
                let _noted = raise(Signal::SIGTERM);
                let _told = nix::unistd::write(&writer, b"1");
                drop(deferred);
                // SAFETY: it ends this process.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(writer);
                let ended = waitpid(child, None).expect("its end");
                assert_eq!(ended, WaitStatus::Signaled(child, Signal::SIGTERM, false));
                let mut told = [0; 2];
                assert_eq!(nix::unistd::read(&reader, &mut told), Ok(1), "it did not live to tell");
            }
        }
    }
}
