//! Without the program on state changes.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use guard_core::model::TcpState;
use nix::sys::socket::{Backlog, listen};

use super::*;
use crate::kernel::sandbox::{listening, queued, try_bound};
use crate::kernel::sock_diag::SockDiag;

const LAST: [&str; 2] = ["LISTEN>CLOSE", "released"];

/// Who listens on `port`, as a look finds him.
fn known(port: Port) -> KnownListener {
    let sockets = SockDiag::open().unwrap().dump(port).unwrap();
    let listener = sockets.iter().find(|socket| socket.state == TcpState::Listen).unwrap();
    KnownListener { cookie: listener.cookie.unwrap(), netns: here(), port }
}

impl Watcher {
    /// Which may rest, unless tracepoints are classic.
    fn restful(test: &str, attach: AttachBy, ports: &[Watch]) -> Option<Self> {
        Self::load(
            test,
            &BpfOptions { attach, ports: ports.to_vec(), may_rest: true, ..BpfOptions::default() },
        )
    }

    fn rests_beside(&mut self, listeners: &[KnownListener]) {
        assert!(self.bpf.may_rest());
        self.bpf.rest(listeners).unwrap();
        assert!(self.bpf.rests());
    }
}

#[test]
fn a_known_listener_is_told_of_by_its_destruction() {
    const NAME: &str = "a_known_listener_is_told_of_by_its_destruction";
    netns(NAME, || {
        // A port that the kernel chose is given back before the listener is destroyed.
        for (address, chosen) in [("127.0.0.1", false), ("::1", false), ("::", false), ("127.0.0.1", true)] {
            let wanted = (!chosen).then(free_port);
            let (fd, port) = try_bound(address, wanted, REUSE).unwrap();
            let Some(mut watcher) = Watcher::restful(NAME, AttachBy::Raw, &[listeners(port)]) else { return };
            listen(&fd, Backlog::new(1).unwrap()).unwrap();
            watcher.until("LISTEN", |seen| seen.len() == 1);
            watcher.rests_beside(&[known(port)]);
            drop(fd);
            let seen = watcher.until_released(port);
            assert_eq!(words(seen), LIFE, "{address}");
            let first = socket(&seen[0]);
            for event in seen {
                let it = socket(event);
                assert_eq!((it.skaddr, it.netns, it.port), (first.skaddr, Some(here()), port), "{address}");
                assert_eq!((it.local.to_string().as_str(), it.remote, it.mapped), (address, None, false));
                assert_eq!(actor(event), Some(Tgid(std::process::id())), "{address}");
            }
            assert_eq!(watcher.remembered(), 0, "{address}");
            // Of the next one nobody knows.
            drop(listening(address, Some(port), REUSE));
            watcher.bpf.wake().unwrap();
            assert!(!watcher.bpf.rests());
            drop(listening(address, Some(port), REUSE));
            assert_eq!(words(watcher.until("the third", |seen| seen.len() == 6)), [LIFE, LIFE].concat());
        }
    });
}

#[test]
fn only_the_known_listener_is_told_of() {
    const NAME: &str = "only_the_known_listener_is_told_of";
    const CHILDREN: usize = 100;
    netns(NAME, || {
        let (fd, port) = bound("127.0.0.1", Some(free_port()), REUSE);
        listen(&fd, Backlog::new(CHILDREN as i32).unwrap()).unwrap();
        let Some(mut watcher) = Watcher::restful(NAME, AttachBy::Raw, &[listeners(port)]) else { return };
        watcher.rests_beside(&[known(port)]);
        // Another address, a bound socket, connections that come and go, and some that nobody accepts.
        drop(listening("127.0.0.2", Some(port), REUSE));
        drop(bound("127.0.0.3", Some(port), REUSE));
        let _clients = queued(Ipv4Addr::LOCALHOST, port, CHILDREN);
        drop(fd);
        assert_eq!(words(watcher.until_released(port)), LAST);
        assert_eq!(watcher.remembered(), 0);
    });
}

#[test]
fn the_end_of_connections_is_told_of_as_ever() {
    const NAME: &str = "the_end_of_connections_is_told_of_as_ever";
    netns(NAME, || {
        let port = free_port();
        let watch = Watch { connections: true, ..listeners(port) };
        let Some(mut watcher) = Watcher::restful(NAME, AttachBy::Raw, &[watch]) else { return };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.get())).unwrap();
        watcher.until("LISTEN", |seen| seen.len() == 1);
        watcher.rests_beside(&[known(port)]);
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
        drop(listener.accept().unwrap());
        drop(client);
        watcher.until("the end of the connection", |seen| seen.iter().any(|event| word(event) == "gone"));
        drop(listener);
        let seen = watcher.until_released(port);
        let of_listeners: Vec<_> = words(seen).into_iter().filter(|word| word != "gone").collect();
        assert_eq!(of_listeners, LIFE);
    });
}

#[test]
fn whoever_is_known_no_longer_ends_in_silence() {
    const NAME: &str = "whoever_is_known_no_longer_ends_in_silence";
    netns(NAME, || {
        let (first, second) = (free_port(), free_port());
        let ports = [listeners(first), listeners(second)];
        let Some(mut watcher) = Watcher::restful(NAME, AttachBy::Raw, &ports) else { return };
        let (one, other) =
            (listening("127.0.0.1", Some(first), REUSE).0, listening("127.0.0.1", Some(second), REUSE).0);
        watcher.until("two listeners", |seen| seen.len() == 2);
        watcher.rests_beside(&[known(first), known(second)]);
        watcher.rests_beside(&[known(second)]);
        drop(one);
        drop(other);
        let seen = watcher.until_released(second);
        assert_eq!(words(&seen[2..]), LAST);
        assert!(seen[2..].iter().all(|event| socket(event).port == second));
    });
}

#[test]
fn classic_tracepoints_do_not_rest() {
    const NAME: &str = "classic_tracepoints_do_not_rest";
    netns(NAME, || {
        let port = free_port();
        let Some(mut watcher) = Watcher::restful(NAME, AttachBy::Classic, &[listeners(port)]) else { return };
        assert!(!watcher.bpf.may_rest());
        let fd = listening("127.0.0.1", Some(port), REUSE).0;
        watcher.bpf.rest(&[known(port)]).unwrap();
        assert!(!watcher.bpf.rests());
        drop(fd);
        assert_eq!(words(watcher.until_released(port)), LIFE);
    });
}
