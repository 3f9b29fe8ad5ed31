//! pidfds on the running kernel.

use std::thread;

use super::*;
use crate::kernel::sandbox::{Actor, Sleeper, alone, become_nobody, eventually, root_or_skip, skip};

#[test]
fn a_live_process_is_opened_signalled_and_its_end_seen() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    let pidfd = PidFd::open(child.id()).unwrap();
    assert_eq!(pidfd.process(), child.id());
    assert!(!pidfd.has_exited().unwrap());
    assert_eq!(pidfd.exit_status(), None);
    pidfd.signal(Signal::Term).unwrap();
    eventually("the end of the child", || pidfd.has_exited().unwrap().then_some(()));
}

#[test]
fn pidfd_refuses_another_start_time() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    let id = child.id();
    let expected = StartTime(id.start.0 - 1);
    match PidFd::open(ProcessId { start: expected, ..id }) {
        Err(PidFdError::IdentityChanged { tgid, expected: e, found }) => {
            assert_eq!((tgid, e, found), (id.tgid, expected, id.start));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pidfd_refuses_a_reused_identity() {
    let alone = alone();
    const NAME: &str = "pidfd_refuses_a_reused_identity";
    if !root_or_skip(NAME) {
        return;
    }
    let first = Sleeper::fork(&alone);
    let id = first.id();
    let pidfd = PidFd::open(id).unwrap();
    drop(first);
    // The start time is in ticks: the successor must start in a later one.
    eventually("the next clock tick", || (uptime_ticks() > id.start.0).then_some(()));
    let second = match Sleeper::with_number(id.tgid, &alone) {
        Ok(second) => second,
        Err(errno) => return skip(NAME, &format!("process number {id} cannot be had again: {errno}")),
    };
    assert_eq!(second.tgid(), id.tgid);
    match PidFd::open(id) {
        Err(PidFdError::IdentityChanged { found, .. }) => assert_eq!(found, second.id().start),
        other => panic!("{other:?}"),
    }
    // The descriptor of the first one does not follow the number.
    assert!(matches!(pidfd.signal(Signal::Kill), Err(PidFdError::Gone(_))));
    assert!(pidfd.has_exited().unwrap());
    assert!(!PidFd::open(second.id()).unwrap().has_exited().unwrap());
}

fn uptime_ticks() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    (seconds * procfs::clock_ticks_per_second() as f64) as u64
}

#[test]
fn a_zombie_and_a_reaped_process_are_gone() {
    let alone = alone();
    let child = Sleeper::fork(&alone);
    let id = child.id();
    child.kill();
    eventually("a zombie", || matches!(PidFd::open(id), Err(PidFdError::Gone(_))).then_some(()));
    drop(child);
    assert!(matches!(PidFd::open(id), Err(PidFdError::Gone(_))));
}

#[test]
fn numbers_that_are_no_process_are_gone() {
    for tgid in [0, u32::MAX, i32::MAX as u32] {
        let nobody = ProcessId { tgid: Tgid(tgid), start: StartTime(1) };
        assert!(matches!(PidFd::open(nobody), Err(PidFdError::Gone(_))), "{tgid}");
    }
}

#[test]
fn a_thread_is_no_process() {
    let (say, tid) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        say.send(nix::unistd::gettid()).unwrap();
        let _ = stopped.recv();
    });
    let tid = Tgid(tid.recv().unwrap().as_raw() as u32);
    let opened = PidFd::open(ProcessId { tgid: tid, start: StartTime(1) });
    assert!(matches!(opened, Err(PidFdError::Gone(_))), "{opened:?}");
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn a_dead_leader_is_no_end_while_a_thread_lives() {
    let alone = alone();
    let actor = Actor::play("leaderless", &alone);
    let start = procfs::start_time(actor.tgid()).unwrap().unwrap();
    let pidfd = PidFd::open(ProcessId { tgid: actor.tgid(), start }).unwrap();
    assert!(!pidfd.has_exited().unwrap());
    pidfd.signal(Signal::Kill).unwrap();
    eventually("the end of the last thread", || pidfd.has_exited().unwrap().then_some(()));
}

#[test]
fn the_exit_status_is_told_after_the_reaping() {
    let alone = alone();
    const NAME: &str = "the_exit_status_is_told_after_the_reaping";
    if !crate::kernel::features::pidfd_exit_info().is_yes() {
        return skip(NAME, "needs Linux 6.15");
    }
    let child = Sleeper::fork(&alone);
    let pidfd = PidFd::open(child.id()).unwrap();
    pidfd.signal(Signal::Kill).unwrap();
    eventually("the end of the child", || pidfd.has_exited().unwrap().then_some(()));
    println!("before the reaping: {:?}", pidfd.exit_status());
    drop(child);
    assert_eq!(pidfd.exit_status(), Some(ExitStatus::Signal { number: 9, core_dumped: false }));
}

#[test]
fn another_user_s_process_may_not_be_signalled() {
    let alone = alone();
    if !root_or_skip("another_user_s_process_may_not_be_signalled") {
        return;
    }
    let child = Sleeper::fork(&alone);
    let id = child.id();
    let answer = thread::spawn(move || {
        become_nobody();
        PidFd::open(id).unwrap().signal(Signal::Kill)
    });
    let answer = answer.join().unwrap();
    assert!(matches!(answer, Err(PidFdError::Denied { .. })), "{answer:?}");
    assert!(!PidFd::open(id).unwrap().has_exited().unwrap());
}

#[test]
fn a_proc_of_another_pid_namespace_is_refused() {
    if !root_or_skip("a_proc_of_another_pid_namespace_is_refused") {
        return;
    }
    // The actor is PID 1 of a new namespace and sees the old one's /proc, where
    // it has another number: its own start time under "1" must not convince.
    let said = thread::spawn(|| {
        let alone = alone();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
        Actor::play("open-parent", &alone).line.clone()
    });
    let said = said.join().unwrap();
    assert!(said.contains("Denied") && said.contains("PID namespace"), "{said}");
}
