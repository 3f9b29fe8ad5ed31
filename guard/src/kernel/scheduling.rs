//! Being on a processor at once when the kernel says something.
//!
//! The kernel tells of a port's release on the processor of the task that gave it
//! back. Where all processors are busy, an ordinary thread waits there for its turn, for milliseconds; a
//! real-time thread is next.

use std::io;

use nix::errno::Errno;
use nix::libc;

/// The lowest priority that comes before every ordinary thread.
const PRIORITY: libc::c_int = 1;

/// The calling thread goes before all ordinary ones (`SCHED_FIFO`, priority 1) until
/// this is dropped. Threads and processes that it starts meanwhile do not.
///
/// It is for a thread that sleeps nearly all the time: the kernel leaves ordinary threads a twentieth of the time only.
#[derive(Debug)]
pub struct Urgent {
    /// It is the calling thread's.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Urgent {
    /// `None` where the thread has a policy of somebody's choice already, such as
    /// `CPUSchedulingPolicy=` of its unit.
    ///
    /// # Errors
    ///
    /// EPERM without `CAP_SYS_NICE`, where a sandbox forbids it (`RestrictRealtime=`),
    /// or in a cgroup (v1) that has no real-time budget.
    pub fn begin() -> io::Result<Option<Self>> {
        // SAFETY: it takes no pointer.
        let policy = unsafe { libc::sched_getscheduler(0) };
        if Errno::result(policy)? & !libc::SCHED_RESET_ON_FORK != libc::SCHED_OTHER {
            return Ok(None);
        }
        set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, PRIORITY)?;
        Ok(Some(Self { _not_send: std::marker::PhantomData }))
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // Without the flag if that is allowed: it would take a negative nice value from children.
        let back =
            set(libc::SCHED_OTHER, 0).or_else(|_| set(libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, 0));
        debug_assert!(back.is_ok(), "nobody is kept from being ordinary");
    }
}

/// Whether whatever this thread starts shares one processor with it.
pub fn one_processor() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|allowed| allowed.count() == 1)
}

/// The calling thread takes the processor from nobody when it wakes up (`SCHED_BATCH`), from now on. Its share stays
/// what it was: others may wait for a lock that it holds.
///
/// # Errors
///
/// EPERM where a sandbox or somebody's choice of another policy forbids it.
pub fn stand_back() -> io::Result<()> {
    set(libc::SCHED_BATCH, 0)
}

fn set(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter lives across the call.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: it takes no pointer.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn only_the_thread_itself_is_urgent_and_only_for_a_while() {
        // The policy is the thread's own.
        std::thread::spawn(|| {
            let Ok(urgent) = Urgent::begin() else {
                crate::kernel::sandbox::skip("urgent", "this process may not have real-time threads");
                return;
            };
            assert!(urgent.is_some());
            assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
            let other = std::thread::spawn(policy).join().expect("the other thread");
            assert_eq!(other, libc::SCHED_OTHER, "a thread that it starts is ordinary");
            let child = std::process::Command::new("chrt").args(["-p", "0"]).output();
            if let Ok(child) = child {
                let said = String::from_utf8_lossy(&child.stdout).into_owned();
                assert!(said.contains("SCHED_OTHER"), "a program that it starts is ordinary: {said}");
            }
            assert!(Urgent::begin().expect("already urgent").is_none());
            drop(urgent);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .expect("the thread");
    }
}
