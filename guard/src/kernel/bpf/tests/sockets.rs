//! The life of listeners and connections.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use guard_core::model::TcpState;
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

use super::*;
use crate::kernel::sandbox::{eventually, listening, queued};

#[test]
fn a_listener_opens_closes_and_is_released() {
    const NAME: &str = "a_listener_opens_closes_and_is_released";
    each_way(NAME, |attach| {
        for address in ["127.0.0.1", "::1", "::"] {
            let port = free_port();
            let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
            let opened = listening(address, Some(port), REUSE).0;
            watcher.until("LISTEN", |seen| seen.len() == 1);
            drop(opened);
            let seen = watcher.until_released(port);
            assert_eq!(words(seen), LIFE, "{address}");
            let first = socket(&seen[0]);
            for event in seen {
                let it = socket(event);
                assert_eq!(it.skaddr, first.skaddr, "{address}");
                assert_eq!((it.netns, it.port), (Some(here()), port), "{address}");
                assert_eq!((it.local.to_string().as_str(), it.remote, it.mapped), (address, None, false));
                assert_eq!(actor(event), Some(Tgid(std::process::id())), "{address}");
            }
            // The classic tracepoint makes a cookie where there is none yet.
            assert!(attach == AttachBy::Raw || socket(&seen[2]).cookie.is_some());
            assert_eq!(watcher.remembered(), 0);
        }
    });
}

#[test]
fn other_ports_and_other_namespaces_are_silent() {
    const NAME: &str = "other_ports_and_other_namespaces_are_silent";
    each_way(NAME, |attach| {
        let (port, other) = (free_port(), free_port());
        let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
        drop(listening("127.0.0.1", Some(other), REUSE));
        elsewhere(move || drop(listening("0.0.0.0", Some(port), REUSE)));
        // What happened before this listener's life would be seen before it.
        drop(listening("127.0.0.1", Some(port), REUSE));
        assert_eq!(words(watcher.until_released(port)), LIFE);
    });
}

#[test]
fn watching_begins_and_ends_while_loaded() {
    const NAME: &str = "watching_begins_and_ends_while_loaded";
    each_way(NAME, |attach| {
        let (first, second) = (free_port(), free_port());
        let Some(mut watcher) = Watcher::load(NAME, &BpfOptions { attach, ..BpfOptions::default() }) else {
            return;
        };
        watcher.bpf.unwatch(here(), first).unwrap();
        watcher.bpf.watch(listeners(first)).unwrap();
        drop(listening("127.0.0.1", Some(first), REUSE));
        watcher.until_released(first);
        watcher.bpf.unwatch(here(), first).unwrap();
        watcher.bpf.watch(listeners(second)).unwrap();
        drop(listening("127.0.0.1", Some(first), REUSE));
        drop(listening("127.0.0.1", Some(second), REUSE));
        assert_eq!(words(watcher.until_released(second)), [LIFE, LIFE].concat());
    });
}

#[test]
fn a_shut_down_listener_is_released_once_and_not_forgotten_in_the_map() {
    const NAME: &str = "a_shut_down_listener_is_released_once_and_not_forgotten_in_the_map";
    each_way(NAME, |attach| {
        let port = free_port();
        let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
        let (fd, _) = listening("127.0.0.1", Some(port), REUSE);
        shutdown(fd.as_raw_fd(), Shutdown::Read).unwrap();
        watcher.until("the end of LISTEN", |seen| seen.len() == 2);
        assert_eq!(watcher.remembered(), 1);
        listen(&fd, Backlog::new(1).unwrap()).unwrap();
        watcher.until("LISTEN again", |seen| seen.len() == 3);
        assert_eq!(watcher.remembered(), 0);
        drop(fd);
        let seen = watcher.until_released(port);
        assert_eq!(words(seen), [&LIFE[..2], &LIFE].concat());
        assert_eq!(watcher.remembered(), 0);
    });
}

#[test]
fn children_in_the_accept_queue_are_not_taken_for_the_listener() {
    const NAME: &str = "children_in_the_accept_queue_are_not_taken_for_the_listener";
    const CHILDREN: usize = 300;
    each_way(NAME, |attach| {
        for connections in [false, true] {
            let (fd, port) = bound("127.0.0.1", None, REUSE);
            let Some(mut watcher) = Watcher::watching(NAME, attach, Watch { connections, ..listeners(port) })
            else {
                return;
            };
            listen(&fd, Backlog::new(CHILDREN as i32).unwrap()).unwrap();
            let clients = queued(Ipv4Addr::LOCALHOST, port, CHILDREN);
            drop(fd);
            let seen = watcher.until_released(port);
            let listener = socket(&seen[0]).skaddr;
            let of_listener: Vec<_> =
                seen.iter().filter(|event| socket(event).skaddr == listener).cloned().collect();
            assert_eq!(words(&of_listener), LIFE);
            let ends =
                seen.iter().filter(|event| matches!(event, Event::StateChanged(it) if it.closes_listener()));
            assert_eq!(ends.count(), 1);
            let children = seen.iter().filter(|event| word(event) == "gone").count();
            assert_eq!(children, if connections { CHILDREN } else { 0 });
            if !connections {
                assert_eq!(seen.len(), 3);
            }
            drop(clients);
        }
    });
}

#[test]
fn the_end_of_connections_is_reported_when_asked_for() {
    const NAME: &str = "the_end_of_connections_is_reported_when_asked_for";
    each_way(NAME, |attach| {
        let port = free_port();
        let watch = Watch { connections: true, ..listeners(port) };
        let Some(mut watcher) = Watcher::watching(NAME, attach, watch) else { return };
        let listener = TcpListener::bind(("::", port.get())).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port.get())).unwrap();
        let (server, peer) = listener.accept().unwrap();
        drop(client);
        drop(server);
        drop(listener);
        // What is left to do for the connection's last segment may be done after that.
        let seen = watcher.until("both releases", |seen| {
            seen.iter().filter(|event| matches!(event, Event::Released(_))).count() == 2
        });
        let (of_connections, of_listener): (Vec<_>, Vec<_>) =
            seen.iter().cloned().partition(|event| socket(event).remote.is_some());
        assert_eq!(words(&of_listener), LIFE);
        // Not the client's, whose own port is another.
        assert_eq!(words(&of_connections), ["gone"], "its way through the states is nobody's business");
        let it = socket(&of_connections[0]);
        let localhost = peer.ip().to_canonical();
        assert_eq!((it.local, it.mapped, it.remote), (localhost, true, Some((localhost, peer.port()))));
        assert_eq!(actor(&of_connections[0]), None);
    });
}

#[test]
fn a_full_ring_is_counted_and_events_go_on_after_it() {
    const NAME: &str = "a_full_ring_is_counted_and_events_go_on_after_it";
    each_way(NAME, |attach| {
        let port = free_port();
        let options =
            BpfOptions { attach, ports: vec![listeners(port)], ring_bytes: 4096, ..BpfOptions::default() };
        let Some(mut watcher) = Watcher::load(NAME, &options) else { return };
        assert_eq!(watcher.bpf.lost().unwrap(), Lost::default());
        // A page holds 39 events of 104 bytes; these are 300.
        for _ in 0..100 {
            drop(listening("127.0.0.1", Some(port), REUSE));
        }
        let mut kept = 0;
        let drained = watcher.bpf.drain(usize::MAX, |_| kept += 1);
        let lost = watcher.bpf.lost().unwrap();
        assert_eq!(watcher.bpf.lost_quick().unwrap(), lost);
        assert_eq!((kept, lost.count(LostReason::RingFull)), (39, 300 - 39));
        assert_eq!((drained as u64, lost.total()), (kept, 300 - 39));
        drop(listening("127.0.0.1", Some(port), REUSE));
        let mut after = Vec::new();
        eventually("three more events", || {
            watcher.bpf.drain(usize::MAX, |event| after.push(event));
            (after.len() == 3).then_some(())
        });
        assert_eq!(words(&after), LIFE);
        assert_eq!(watcher.bpf.lost().unwrap(), lost);
    });
}

#[test]
fn a_ring_of_a_strange_size_is_refused_in_words() {
    for ring_bytes in [0, 1, 5000, 2048] {
        let error = match Bpf::load(&BpfOptions { ring_bytes, ..BpfOptions::default() }) {
            Err(BpfError::Stub) => return,
            Err(error) => error.to_string(),
            Ok(_) => panic!("{ring_bytes} bytes were accepted"),
        };
        assert!(error.contains(&ring_bytes.to_string()) && error.contains("power of two"), "{error}");
    }
}

#[test]
fn a_socket_on_its_way_from_a_listener_is_no_end_of_listen() {
    let changed = |old, new| StateChanged {
        at: guard_core::model::Instant::from_nanos(0),
        socket: KernelSocket {
            skaddr: SkAddr(1),
            cookie: None,
            netns: None,
            local: [127, 0, 0, 1].into(),
            port: Port::new(1).unwrap(),
            remote: None,
            mapped: false,
        },
        old,
        new,
        actor: None,
    };
    assert!(!changed(TcpState::Listen, TcpState::SynRecv).closes_listener());
    assert!(changed(TcpState::Listen, TcpState::Close).closes_listener());
    assert!(changed(TcpState::Close, TcpState::Listen).opens_listener());
}
