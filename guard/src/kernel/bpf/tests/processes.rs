//! The end of owners, and of the guard itself.

use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use guard_core::model::ExitStatus;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Backlog, listen};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};

use super::*;
use crate::kernel::sandbox::eventually;

/// A child process that does as `body` says and never returns. It makes system
/// calls and starts threads, nothing else: other threads of the tests hold locks.
pub(super) fn forked(body: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the child touches nothing that another thread may have locked, and leaves by `_exit`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // A test that fails leaves no child waiting for ever.
            // SAFETY: takes no pointers.
            let _best_effort = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let code = body();
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
    }
}

pub(super) fn tgid(pid: Pid) -> Tgid {
    Tgid(pid.as_raw() as u32)
}

fn exits(events: &[Event]) -> Vec<&Exited> {
    events.iter().filter_map(|event| if let Event::Exited(it) = event { Some(it) } else { None }).collect()
}

/// A pipe: the child reads until the parent writes.
pub(super) fn leash() -> (OwnedFd, OwnedFd) {
    pipe().unwrap()
}

pub(super) fn wait_for(leash: &OwnedFd) {
    let _any_outcome_ends_the_wait = read(leash, &mut [0]);
}

#[test]
fn an_owner_that_exits_is_reported_before_its_listener_closes() {
    const NAME: &str = "an_owner_that_exits_is_reported_before_its_listener_closes";
    each_way_alone(NAME, |attach| {
        let port = free_port();
        let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
        let fd = bound("127.0.0.1", Some(port), REUSE).0;
        let (ours, theirs) = leash();
        let child = forked(|| {
            let _reported_by_the_missing_event = listen(&fd, Backlog::new(1).unwrap());
            wait_for(&ours);
            3
        });
        drop(fd);
        let seen = watcher.until("LISTEN", |seen| seen.len() == 1);
        assert_eq!(actor(&seen[0]), Some(tgid(child)));
        write(&theirs, b"x").unwrap();
        let seen = watcher.until_released(port);
        let status = ExitStatus::Code(3);
        let exited = format!("exited {:?}", Some(status));
        assert_eq!(words(seen), [LIFE[0], &exited, LIFE[1], LIFE[2]]);
        assert_eq!(exits(seen)[0].tgid, tgid(child));
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 3));
    });
}

#[test]
fn a_killed_owner_is_reported_with_its_signal() {
    const NAME: &str = "a_killed_owner_is_reported_with_its_signal";
    each_way_alone(NAME, |attach| {
        let Some(mut watcher) = Watcher::load(NAME, &BpfOptions { attach, ..BpfOptions::default() }) else {
            return;
        };
        let (ours, _theirs) = leash();
        let waiting = || {
            forked(|| {
                wait_for(&ours);
                0
            })
        };
        let (killed, left_alone) = (waiting(), waiting());
        watcher.bpf.own(tgid(killed)).unwrap();
        watcher.bpf.own(tgid(left_alone)).unwrap();
        watcher.bpf.disown(tgid(left_alone)).unwrap();
        watcher.bpf.disown(tgid(left_alone)).unwrap();
        for child in [left_alone, killed] {
            kill(child, Signal::SIGKILL).unwrap();
            waitpid(child, None).unwrap();
        }
        let seen = watcher.until("an exit", |seen| !seen.is_empty());
        let exits = exits(seen);
        assert_eq!(exits.len(), 1);
        assert_eq!(exits[0].tgid, tgid(killed));
        assert_eq!(exits[0].status, Some(ExitStatus::Signal { number: 9, core_dumped: false }));
    });
}

#[test]
fn a_leader_that_exits_before_its_threads_is_not_the_end_of_the_group() {
    const NAME: &str = "a_leader_that_exits_before_its_threads_is_not_the_end_of_the_group";
    each_way_alone(NAME, |attach| {
        let Some(mut watcher) = Watcher::load(NAME, &BpfOptions { attach, ..BpfOptions::default() }) else {
            return;
        };
        let (leader_waits, leader_goes) = leash();
        let (thread_waits, thread_goes) = leash();
        let child = forked(move || {
            let _outlives_the_leader = thread::spawn(move || {
                wait_for(&thread_waits);
                // SAFETY: ends the whole group without running what belongs to the parent.
                unsafe { libc::_exit(5) }
            });
            wait_for(&leader_waits);
            // SAFETY: ends this thread alone; nothing of it is used afterwards.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("a thread that has exited")
        });
        watcher.bpf.own(tgid(child)).unwrap();
        write(&leader_goes, b"x").unwrap();
        let stat = format!("/proc/{child}/stat");
        eventually("the leader is a zombie", || {
            std::fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(())
        });
        assert_eq!(watcher.bpf.drain(usize::MAX, |event| panic!("{event:?}")), 0);
        write(&thread_goes, b"x").unwrap();
        let seen = watcher.until("an exit", |seen| !seen.is_empty());
        assert_eq!(words(seen), [format!("exited {:?}", Some(ExitStatus::Code(5)))]);
        assert_eq!(exits(seen)[0].tgid, tgid(child));
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 5));
    });
}

/// Runs this test binary's test `name` as a child with `variable` set to the
/// way, and waits until it says that it is ready.
fn again(name: &str, variable: &str, way: AttachBy) -> Child {
    let path = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([path.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env(variable, format!("{way:?}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "{name} never got ready");
    child
}

#[test]
fn killing_the_guard_leaves_nothing_in_the_kernel() {
    const NAME: &str = "killing_the_guard_leaves_nothing_in_the_kernel";
    const VARIABLE: &str = "PORTGUARD_TEST_HOLDS_BPF";
    if let Some(way) = std::env::var_os(VARIABLE) {
        let attach = WAYS.into_iter().find(|it| way == *format!("{it:?}")).unwrap();
        let _held = Bpf::load(&BpfOptions { attach, ..BpfOptions::default() }).unwrap();
        println!("ready");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return;
    }
    each_way_alone(NAME, |attach| {
        if Watcher::load(NAME, &BpfOptions { attach, ..BpfOptions::default() }).is_none() {
            return;
        }
        let mut child = again(NAME, VARIABLE, attach);
        let held = held_by(child.id());
        // On three tracepoints, the iterator, and where functions may be hooked on two of these.
        let count = if may_hook_functions().is_yes() { 7 } else { 4 };
        assert_eq!((held.programs.len(), held.links.len()), (count, count), "{held:?}");
        let loaded =
            || -> Vec<u32> { aya::programs::loaded_programs().flatten().map(|it| it.id()).collect() };
        let linked = || -> Vec<u32> { aya::programs::loaded_links().flatten().map(|it| it.id()).collect() };
        assert!(held.programs.iter().all(|id| loaded().contains(id)));
        assert!(held.links.iter().all(|id| linked().contains(id)));
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("programs and links are gone", || {
            let (loaded, linked) = (loaded(), linked());
            let gone = |ids: &[u32], present: &[u32]| ids.iter().all(|id| !present.contains(id));
            (gone(&held.programs, &loaded) && gone(&held.links, &linked)).then_some(())
        });
    });
}

#[derive(Debug, Default)]
struct Held {
    programs: Vec<u32>,
    links: Vec<u32>,
}

/// BPF objects that a process has descriptors for, by their ids.
fn held_by(pid: u32) -> Held {
    let mut held = Held::default();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let id = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        match (id("link_id:"), id("prog_id:")) {
            (Some(link), _) => held.links.push(link),
            (None, Some(program)) => held.programs.push(program),
            (None, None) => {}
        }
    }
    held
}
