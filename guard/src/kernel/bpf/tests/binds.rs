//! Who else fails to bind a watched port. The guard's own process is never told
//! of, so everybody here is a child of the test.

use std::os::fd::OwnedFd;

use guard_core::model::Uid;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setuid, write};

use super::degraded::lesser;
use super::functions::may_hook;
use super::processes::{forked, leash, tgid, wait_for};
use super::*;
use crate::kernel::procfs;
use crate::kernel::sandbox::listening;

const LOSER: u32 = 4711;

fn options(ports: Vec<Watch>) -> BpfOptions {
    let failed_binds = FailedBinds::AtAnyCost;
    BpfOptions { attach: AttachBy::Raw, ports, failed_binds, ..BpfOptions::default() }
}

/// Runs `body` with the program on the deciding function, where the kernel takes
/// it, and with the one at the end of every system call.
fn each_hook(test: &'static str, body: impl Fn(fn(&BpfOptions) -> Option<Watcher>) + Copy + Send + 'static) {
    netns_alone(test, move |_| {
        if may_hook() {
            body(|options| Watcher::load("on the function", options));
        }
        body(|options| lesser("on every call", options, &[&hook::GET_PORT], |_| ()));
    });
}

fn endpoint(address: &str, port: Port) -> SockaddrStorage {
    std::net::SocketAddr::new(address.parse().unwrap(), port.get()).into()
}

fn unbound(address: &SockaddrStorage, kind: SockType) -> OwnedFd {
    let v6 = address.as_sockaddr_in6().is_some();
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn bind_it(fd: &OwnedFd, address: &SockaddrStorage) -> Result<(), Errno> {
    bind(std::os::fd::AsRawFd::as_raw_fd(fd), address)
}

/// 0 when the bind failed because the address is in use.
fn loses(address: &SockaddrStorage, kind: SockType) -> i32 {
    i32::from(bind_it(&unbound(address, kind), address) != Err(Errno::EADDRINUSE))
}

fn ended_well(child: Pid) {
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

fn losers(events: &[Event]) -> Vec<&BindFailed> {
    events
        .iter()
        .filter_map(|event| if let Event::BindFailed(it) = event { Some(it) } else { None })
        .collect()
}

#[test]
fn a_failed_bind_is_reported_with_who_and_what() {
    const NAME: &str = "a_failed_bind_is_reported_with_who_and_what";
    each_hook(NAME, |load| {
        for (held, asked) in [("127.0.0.1", "127.0.0.1"), ("::", "::"), ("::1", "::"), ("::", "0.0.0.0")] {
            let (_holder, port) = listening(held, None, REUSE);
            let Some(mut watcher) = load(&options(vec![listeners(port)])) else { return };
            let (ours, theirs) = leash();
            let address = endpoint(asked, port);
            let child = forked(|| {
                setuid(LOSER.into()).unwrap();
                let code = loses(&address, SockType::Stream);
                wait_for(&ours);
                code
            });
            let seen = watcher.until("a failed bind", |seen| !seen.is_empty());
            let [Event::BindFailed(it)] = seen else { panic!("{seen:#?}") };
            assert_eq!((it.address.to_string().as_str(), it.port), (asked, port), "{held}");
            assert_eq!((it.netns, it.by_listen, it.attempts), (Some(here()), false, 1));
            assert_eq!((it.tgid, it.uid), (Some(tgid(child)), Uid(LOSER)));
            assert_eq!(it.start, procfs::start_time(tgid(child)).unwrap(), "as /proc shows it");
            assert_eq!(it.comm, procfs::process(tgid(child)).unwrap().unwrap().comm);
            assert_ne!(it.cgroup, 0);
            write(&theirs, b"x").unwrap();
            ended_well(child);
        }
    });
}

#[test]
fn a_listen_that_comes_second_is_a_lost_bind_too() {
    const NAME: &str = "a_listen_that_comes_second_is_a_lost_bind_too";
    each_hook(NAME, |load| {
        let (first, port) = bound("127.0.0.1", None, REUSE);
        let Some(mut watcher) = load(&options(vec![listeners(port)])) else { return };
        let address = endpoint("127.0.0.1", port);
        let (ours, theirs) = leash();
        let (has_bound, says_so) = leash();
        let child = forked(|| {
            let second = unbound(&address, SockType::Stream);
            setsockopt(&second, sockopt::ReuseAddr, &true).unwrap();
            bind_it(&second, &address).unwrap();
            write(&says_so, b"x").unwrap();
            wait_for(&ours);
            i32::from(listen(&second, Backlog::new(1).unwrap()) != Err(Errno::EADDRINUSE))
        });
        wait_for(&has_bound);
        listen(&first, Backlog::new(1).unwrap()).unwrap();
        write(&theirs, b"x").unwrap();
        ended_well(child);
        let seen = watcher.until("a failed listen", |seen| !losers(seen).is_empty());
        let [it] = losers(seen)[..] else { panic!("{seen:#?}") };
        assert!(it.by_listen, "{it:?}");
        assert_eq!((it.address.to_string().as_str(), it.tgid), ("127.0.0.1", Some(tgid(child))));
    });
}

#[test]
fn other_failures_and_the_guard_s_own_are_silent() {
    const NAME: &str = "other_failures_and_the_guard_s_own_are_silent";
    each_hook(NAME, |load| {
        let (_holder, port) = listening("0.0.0.0", None, REUSE);
        let (_other_holder, other) = listening("0.0.0.0", None, REUSE);
        let address = endpoint("0.0.0.0", port);
        let datagram = unbound(&address, SockType::Datagram);
        bind_it(&datagram, &address).unwrap();
        let Some(mut watcher) = load(&options(vec![listeners(port)])) else { return };
        assert_eq!(loses(&address, SockType::Stream), 0, "the guard itself");
        ended_well(forked(|| loses(&endpoint("0.0.0.0", other), SockType::Stream)));
        ended_well(forked(|| loses(&address, SockType::Datagram)));
        elsewhere(move || {
            let (_elsewhere, _) = listening("0.0.0.0", Some(port), REUSE);
            ended_well(forked(|| loses(&endpoint("0.0.0.0", port), SockType::Stream)));
        });
        let last = forked(|| loses(&address, SockType::Stream));
        ended_well(last);
        let seen = watcher.until("the last one", |seen| !losers(seen).is_empty());
        let told: Vec<_> = losers(seen).iter().map(|it| it.tgid).collect();
        assert_eq!(told, [Some(tgid(last))]);
    });
}

/// A spinning process would otherwise fill the ring buffer by itself.
#[test]
fn a_process_that_spins_on_bind_is_reported_once_a_second() {
    const NAME: &str = "a_process_that_spins_on_bind_is_reported_once_a_second";
    each_hook(NAME, |load| {
        let (_holder, port) = listening("127.0.0.1", None, REUSE);
        let Some(mut watcher) = load(&options(vec![listeners(port)])) else { return };
        let address = endpoint("127.0.0.1", port);
        let child = forked(|| {
            let socket = unbound(&address, SockType::Stream);
            while bind_it(&socket, &address) == Err(Errno::EADDRINUSE) {}
            1
        });
        let seen = watcher.until("two reports", |seen| losers(seen).len() == 2);
        let [first, second] = losers(seen)[..] else { panic!("{seen:#?}") };
        assert_eq!((first.attempts, first.tgid), (1, Some(tgid(child))));
        assert!(second.attempts > 1, "{second:?}");
        // The program reads the time for the pause and the one for the event, one just after the other.
        assert!(second.at.since(first.at) >= Duration::from_millis(990), "{seen:#?}");
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
    });
}

/// Nor may many processes, which any user can start.
#[test]
fn a_crowd_of_losers_takes_no_room_from_what_a_gate_waits_for() {
    const NAME: &str = "a_crowd_of_losers_takes_no_room_from_what_a_gate_waits_for";
    each_hook(NAME, |load| {
        let (_holder, port) = listening("127.0.0.1", None, REUSE);
        let options = BpfOptions { ring_bytes: 4096, ..options(vec![listeners(port)]) };
        let Some(mut watcher) = load(&options) else { return };
        let address = endpoint("127.0.0.1", port);
        for _ in 0..40 {
            ended_well(forked(|| loses(&address, SockType::Stream)));
        }
        let lost = watcher.bpf.lost_quick().unwrap();
        assert_ne!(lost.count(LostReason::BindCrowdedOut), 0);
        assert_eq!((lost.count(LostReason::RingFull), lost.of_the_port()), (0, 0));
        let mut told = 0;
        watcher.bpf.drain(usize::MAX, |event| told += usize::from(matches!(event, Event::BindFailed(_))));
        assert_eq!(told as u64 + lost.count(LostReason::BindCrowdedOut), 40);
    });
}
