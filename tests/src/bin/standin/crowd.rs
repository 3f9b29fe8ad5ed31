//! The stand-in's children, threads and memory.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, fork};

use crate::options::{Options, Size};
use crate::sockets::Bound;

/// Which side of the forks this process is on.
pub(crate) enum Role {
    /// The original, with the children's PIDs.
    Parent(Vec<i32>),
    /// A child that shares the listeners.
    Child,
}

/// Forks the children that share the listeners.
pub(crate) fn fork_sharers(options: &Options) -> Result<Role> {
    let mut children = Vec::new();
    for _ in 0..options.fork_sharer {
        // SAFETY: no thread was started yet, so the child may do whatever its parent may.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => children.push(child.as_raw()),
            ForkResult::Child => {
                follow_leash();
                return Ok(Role::Child);
            }
        }
    }
    Ok(Role::Parent(children))
}

/// Ends this process when the other end of its standard input closes. A file or
/// a terminal there never hangs up by itself, so by hand it just stays.
pub(crate) fn follow_leash() {
    std::thread::spawn(|| {
        // SAFETY: descriptor 0 is never closed by this program.
        let stdin = unsafe { BorrowedFd::borrow_raw(0) };
        let mut leash = [PollFd::new(stdin, PollFlags::empty())];
        loop {
            match poll(&mut leash, PollTimeout::NONE) {
                Ok(_) if leash[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP)) => {
                    std::process::exit(0);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    });
}

/// Starts threads that only wait.
pub(crate) fn start_threads(count: u32) {
    for _ in 0..count {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
    }
}

/// Touches every page of `size` bytes and keeps them resident.
pub(crate) fn touch_memory(Size(size): Size) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(size)?;
    memory.resize(size, 1);
    ensure!(memory.last() == Some(&1), "the memory was not touched");
    std::mem::forget(memory);
    Ok(())
}

/// Opens so many descriptors, which nobody closes. Children have them too.
pub(crate) fn keep_open(count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("setrlimit(RLIMIT_NOFILE)")?;
    let nothing = std::fs::File::open("/dev/null").context("open /dev/null")?;
    for _ in 0..count {
        std::mem::forget(nothing.try_clone().context("another descriptor")?);
    }
    Ok(())
}

/// Ends this thread only. For the thread group leader that means: a zombie with
/// an empty `/proc/PID/fd`, while the other threads keep the sockets.
pub(crate) fn leave_as_leader() -> ! {
    // SAFETY: SYS_exit ends the calling thread without unwinding; nothing that lives on
    // this thread's stack is shared with another thread, and its descriptors are forgotten by
    // never being dropped.
    unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
    loop {
        std::thread::park_timeout(Duration::MAX);
    }
}

/// Sleeps in the kernel as the caller of `vfork()` does until its child has exited or become another
/// program: in D state, and only a fatal signal ends it. The child keeps none of the listeners.
pub(crate) fn wait_as_vfork_does(listeners: Vec<Bound>) {
    let flags = nix::libc::CLONE_VFORK | nix::libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is fork(): the child has its own memory, and makes
    // only system calls.
    let answer = unsafe { nix::libc::syscall(nix::libc::SYS_clone, flags, 0, 0, 0, 0) };
    if answer != 0 {
        return;
    }
    // SAFETY: no pointer is passed; the descriptors are closed here only, in the child's own table.
    unsafe {
        nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL);
        for listener in &listeners {
            nix::libc::close(listener.fd.as_raw_fd());
        }
        loop {
            nix::libc::pause();
        }
    }
}
