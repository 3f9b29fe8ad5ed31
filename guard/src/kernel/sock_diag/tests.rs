//! What a dump shows, fact by fact, on the running kernel.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use guard_core::model::{TcpState, Uid};
use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::kernel::procfs;
use crate::kernel::sandbox::{
    Flags, REUSE, STRICT, become_nobody, bound, eventually, inode_of, listening, netns, queued, root_or_skip,
    try_bound,
};

fn dump(port: Port) -> Vec<Socket> {
    SockDiag::open().unwrap().dump(port).unwrap()
}

fn the_only(port: Port) -> Socket {
    let mut sockets = dump(port);
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    sockets.remove(0)
}

fn in_state(port: Port, state: TcpState) -> Socket {
    let mut diag = SockDiag::open().unwrap();
    eventually(state.name(), || diag.dump(port).unwrap().into_iter().find(|socket| socket.state == state))
}

/// An accepted connection and its client on a listener that is closed again.
fn accepted(address: &str, flags: Flags) -> (TcpStream, TcpStream, Port) {
    let (fd, port) = listening(address, None, flags);
    let listener = TcpListener::from(fd);
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
    let (server, _) = listener.accept().unwrap();
    (server, client, port)
}

#[test]
fn both_families_come_of_one_walk_ipv4_first() {
    netns("both_families_come_of_one_walk_ipv4_first", || {
        let (_six, port) = listening("::1", None, STRICT);
        let (_four, _) = listening("127.0.0.1", Some(port), STRICT);
        let (_other, other) = listening("::1", None, STRICT);
        let addresses = |sockets: Vec<Socket>| sockets.iter().map(|s| s.address).collect::<Vec<_>>();
        let (four, six) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        let mut diag = SockDiag::open().unwrap();
        assert_eq!(addresses(diag.dump(port).unwrap()), [four, six]);
        assert_eq!(addresses(diag.listeners().unwrap()), [four, six, six]);
        assert_eq!(addresses(diag.dump(other).unwrap()), [six]);
    });
}

#[test]
fn a_listener_shows_with_inode_uid_queue_and_backlog() {
    netns("a_listener_shows_with_inode_uid_queue_and_backlog", || {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let _waiting = queued(Ipv4Addr::LOCALHOST, port, 1);
        let sockets = dump(port);
        let listener = sockets.iter().find(|s| s.state == TcpState::Listen).unwrap();
        assert_eq!(listener.address, Ipv4Addr::LOCALHOST);
        assert_eq!(listener.inode, Some(inode_of(&fd)));
        assert_eq!(listener.uid, Uid(0));
        assert_eq!((listener.accept_queue, listener.backlog), (Some(1), Some(16)));
        assert_eq!(
            (listener.remote, listener.mapped, listener.v6only, listener.expires),
            (None, false, None, None)
        );
        assert!(listener.cookie.is_some());
        // Not yet accepted: established, without a file.
        let child = sockets.iter().find(|s| s.state == TcpState::Established).unwrap();
        assert_eq!((child.inode, child.accept_queue, child.backlog), (None, None, None));
    });
}

#[test]
fn only_the_local_port_is_listed() {
    netns("only_the_local_port_is_listed", || {
        let (server, client, port) = accepted("127.0.0.1", REUSE);
        let (_other, _) = listening("127.0.0.1", None, REUSE);
        let (_bound, _) = bound("127.0.0.1", None, REUSE);
        let (_bound6, _) = bound("::1", None, REUSE);
        let connection = the_only(port);
        assert_eq!(connection.inode, Some(inode_of(&server)));
        let client_port = client.local_addr().unwrap().port();
        assert_eq!(connection.remote, Some((IpAddr::V4(Ipv4Addr::LOCALHOST), client_port)));
        let client_side = the_only(Port::new(client_port).unwrap());
        assert_eq!(client_side.inode, Some(inode_of(&client)));
    });
}

#[test]
fn bound_but_not_listening_socket_is_listed() {
    netns("bound_but_not_listening_socket_is_listed", || {
        for address in ["127.0.0.1", "::1", "::"] {
            let (fd, port) = bound(address, None, STRICT);
            let socket = the_only(port);
            assert_eq!(socket.state, TcpState::BoundInactive, "{address}");
            assert_eq!(socket.inode, Some(inode_of(&fd)));
            assert_eq!(socket.address, address.parse::<IpAddr>().unwrap());
            assert_eq!(socket.remote, None);
        }
    });
}

#[test]
fn bound_only_sockets_of_other_ports_are_filtered_here_and_not_by_the_kernel() {
    netns("bound_only_sockets_of_other_ports_are_filtered_here_and_not_by_the_kernel", || {
        let others: Vec<_> = (0..300).map(|_| bound("127.0.0.1", None, STRICT)).collect();
        let (_fd, port) = bound("127.0.0.1", None, STRICT);
        assert_eq!(the_only(port).state, TcpState::BoundInactive);
        drop(others);
    });
}

#[test]
fn time_wait_is_listed_with_remaining_time() {
    netns("time_wait_is_listed_with_remaining_time", || {
        let (server, client, port) = accepted("127.0.0.1", REUSE);
        drop(server);
        drop(client);
        let socket = in_state(port, TcpState::TimeWait);
        assert_eq!(socket.inode, None);
        assert!(socket.cookie.is_some());
        let first = socket.expires.unwrap();
        assert!(first > Duration::from_secs(50) && first <= Duration::from_secs(61), "{first:?}");
        let later =
            eventually("a shorter remaining time", || the_only(port).expires.filter(|later| *later < first));
        assert!(first - later < Duration::from_secs(10), "{first:?} {later:?}");
    });
}

#[test]
fn an_orphan_in_fin_wait2_shows_its_remaining_time_too() {
    netns("an_orphan_in_fin_wait2_shows_its_remaining_time_too", || {
        let (server, _client, port) = accepted("127.0.0.1", REUSE);
        drop(server);
        let socket = in_state(port, TcpState::FinWait2);
        assert_eq!(socket.inode, None);
        assert!(socket.expires.is_some_and(|left| left <= Duration::from_secs(61)));
    });
}

#[test]
fn v6only_is_reported() {
    netns("v6only_is_reported", || {
        for v6only in [false, true] {
            let flags = Flags { v6only, ..REUSE };
            let (_fd, port) = listening("::", None, flags);
            assert_eq!(the_only(port).v6only, Some(v6only), "listening");
            let (_fd, port) = bound("::", None, flags);
            assert_eq!(the_only(port).v6only, Some(v6only), "bound only");
        }
    });
}

#[test]
fn an_ipv4_connection_of_a_dual_stack_listener_shows_as_mapped() {
    netns("an_ipv4_connection_of_a_dual_stack_listener_shows_as_mapped", || {
        let (server, client, port) = accepted("::", REUSE);
        let connection = the_only(port);
        assert_eq!(connection.address, Ipv4Addr::LOCALHOST);
        assert!(connection.mapped);
        assert_eq!(
            connection.remote,
            Some((client.local_addr().unwrap().ip(), client.local_addr().unwrap().port()))
        );
        drop((server, client));
        let time_wait = in_state(port, TcpState::TimeWait);
        assert!(time_wait.mapped && time_wait.expires.is_some());
    });
}

#[test]
fn a_mapped_listener_shows_as_mapped() {
    netns("a_mapped_listener_shows_as_mapped", || {
        let (_fd, port) = listening("::ffff:127.0.0.1", None, REUSE);
        let socket = the_only(port);
        assert_eq!((socket.address, socket.mapped), (IpAddr::V4(Ipv4Addr::LOCALHOST), true));
        SockDiag::open().unwrap().destroy(&socket).unwrap();
        assert_eq!(the_only(port).state, TcpState::BoundInactive);
    });
}

#[test]
fn a_request_socket_is_told_from_a_connection() {
    netns("a_request_socket_is_told_from_a_connection", || {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        // With TCP_DEFER_ACCEPT the handshake's last ACK is not enough.
        const TCP_DEFER_ACCEPT: i32 = 9;
        let seconds = 30_i32;
        // SAFETY: the option is one int, which outlives the call.
        let set = unsafe {
            nix::libc::setsockopt(
                fd.as_raw_fd(),
                nix::libc::IPPROTO_TCP,
                TCP_DEFER_ACCEPT,
                (&raw const seconds).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(set, 0);
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
        let states: BTreeSet<TcpState> = dump(port).iter().map(|socket| socket.state).collect();
        assert_eq!(states, BTreeSet::from([TcpState::Listen, TcpState::NewSynRecv]));
        let through_proc: BTreeSet<TcpState> =
            procfs::sockets(port).unwrap().iter().map(|socket| socket.state).collect();
        assert_eq!(through_proc, states);
    });
}

#[test]
fn a_dump_larger_than_one_datagram_is_whole() {
    netns("a_dump_larger_than_one_datagram_is_whole", || {
        const CONNECTIONS: usize = 1500;
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let listener = TcpListener::from(fd);
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                (TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap(), listener.accept().unwrap())
            })
            .collect();
        let sockets = dump(port);
        assert_eq!(sockets.len(), CONNECTIONS + 1);
        let inodes: BTreeSet<_> = sockets.iter().map(|socket| socket.inode).collect();
        assert_eq!(inodes.len(), CONNECTIONS + 1);
        drop(connections);
    });
}

#[test]
fn one_walk_for_several_ports_finds_what_a_walk_for_each_finds() {
    netns("one_walk_for_several_ports_finds_what_a_walk_for_each_finds", || {
        let (_server, _client, connected) = accepted("127.0.0.1", REUSE);
        let (_listener, listened) = listening("::1", None, REUSE);
        let (_bound, reserved) = bound("127.0.0.1", None, REUSE);
        let (_other, unwanted) = listening("127.0.0.1", None, REUSE);
        let wanted = BTreeSet::from([connected, listened, reserved]);
        let known = |sockets: &[Socket]| -> BTreeSet<_> {
            sockets.iter().map(|socket| (socket.port, socket.cookie, socket.state.name())).collect()
        };
        let one_by_one: Vec<Socket> = wanted.iter().flat_map(|&port| dump(port)).collect();
        let at_once = SockDiag::open().unwrap().dump_any(&wanted).unwrap();
        assert_eq!(known(&at_once), known(&one_by_one));
        assert!(at_once.iter().any(|socket| socket.port == listened));
        assert!(at_once.iter().all(|socket| socket.port != unwanted));
        assert!(at_once.is_sorted_by_key(|socket| socket.port));
        let chosen = SockDiag::open().unwrap().dump_each(&wanted).unwrap();
        assert_eq!(known(&chosen), known(&one_by_one));
        assert!(chosen.is_sorted_by_key(|socket| socket.port));
    });
}

#[test]
fn the_kernel_chooses_by_several_ports_as_it_does_by_one() {
    netns("the_kernel_chooses_by_several_ports_as_it_does_by_one", || {
        let mut ports = BTreeSet::new();
        let mut open = Vec::new();
        let mut connections = Vec::new();
        for number in 0..AT_ONCE {
            let (server, client, port) = accepted("127.0.0.1", REUSE);
            if number % 2 == 0 {
                // The side that closes first keeps a TIME_WAIT socket.
                drop((server, client));
                in_state(port, TcpState::TimeWait);
            } else {
                connections.push((server, client));
            }
            // Before 6.8 no table shows a socket that is only bound.
            let (listener, other) = listening("::", None, REUSE);
            let (reserved, third) = bound("127.0.0.1", None, REUSE);
            ports.extend([port, other, third]);
            open.extend([listener, reserved]);
        }
        let ports: Vec<Port> = ports.into_iter().collect();
        let known = |sockets: &[Socket]| -> BTreeSet<_> {
            sockets.iter().map(|socket| (socket.port, socket.cookie, socket.state.name())).collect()
        };
        let one_by_one =
            |ports: &[Port]| -> Vec<Socket> { ports.iter().flat_map(|&port| dump(port)).collect() };
        for some in
            [&ports[..2], &ports[..3], &ports[1..AT_ONCE], &ports[..AT_ONCE], &ports[AT_ONCE..][..AT_ONCE]]
        {
            let mut diag = SockDiag::open().unwrap();
            let at_once = diag.dump_together(some).unwrap().expect("one datagram, and a kernel that chooses");
            assert_eq!(known(&at_once), known(&one_by_one(some)));
            assert!(at_once.is_sorted_by_key(|socket| socket.port));
        }
        let mut diag = SockDiag::open().unwrap();
        let all = diag.dump_each(&ports.iter().copied().collect()).unwrap();
        assert_eq!(known(&all), known(&one_by_one(&ports)));
        assert!(all.len() >= 2 * AT_ONCE, "{all:?}");
        drop((open, connections));
    });
}

/// Sockets that do not fit into one datagram may come and go between two: each port is asked for by itself then.
#[test]
fn a_crowd_on_one_of_several_ports_is_asked_for_by_itself() {
    netns("a_crowd_on_one_of_several_ports_is_asked_for_by_itself", || {
        let (crowded, port) = listening("::", None, REUSE);
        let (_other, quiet) = listening("::", None, REUSE);
        let listener = TcpListener::from(crowded);
        let mut crowd = Vec::new();
        // For both ports: at the first attempt; once the kernel knows how much is read at once; not at all, so one by one.
        for (size, walks) in [(0, 1), (100, 2), (600, 4)] {
            while crowd.len() < size {
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
                crowd.push((client, listener.accept().unwrap()));
            }
            let mut diag = SockDiag::open().unwrap();
            assert_eq!(diag.dump_each(&BTreeSet::from([port, quiet])).unwrap().len(), size + 2);
            assert_eq!(diag.channel.sequence, walks, "{size}");
        }
        drop(crowd);
    });
}

#[test]
fn only_a_listener_listens() {
    netns("only_a_listener_listens", || {
        let (_server, _client, connected) = accepted("127.0.0.1", REUSE);
        let (_bound, reserved) = bound("127.0.0.1", None, REUSE);
        let (_listener, listened) = listening("::", None, REUSE);
        let mut diag = SockDiag::open().unwrap();
        assert!(!diag.listens(&[connected, reserved]).unwrap());
        assert!(diag.listens(&[connected, listened]).unwrap());
        assert!(!diag.listens(&[]).unwrap());
    });
}

#[test]
fn one_open_door_serves_many_dumps() {
    netns("one_open_door_serves_many_dumps", || {
        let (_fd, port) = listening("127.0.0.1", None, REUSE);
        let mut diag = SockDiag::open().unwrap();
        for _ in 0..100 {
            assert_eq!(diag.dump(port).unwrap().len(), 1);
        }
    });
}

#[test]
fn a_device_bound_listener_shows_its_interface() {
    netns("a_device_bound_listener_shows_its_interface", || {
        let (fd, port) = bound("127.0.0.1", None, REUSE);
        setsockopt(&fd, sockopt::BindToDevice, &"lo".into()).unwrap();
        assert_eq!(the_only(port).device, 1);
    });
}

#[test]
fn a_door_stays_in_the_namespace_it_was_opened_in() {
    netns("a_door_stays_in_the_namespace_it_was_opened_in", || {
        let (_fd, port) = listening("127.0.0.1", None, REUSE);
        let mut diag = SockDiag::open().unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        assert_eq!(diag.dump(port).unwrap().len(), 1);
        assert_eq!(dump(port), []);
    });
}

#[test]
fn destroying_a_listener_leaves_it_bound_and_lets_only_reuse_binders_in() {
    netns("destroying_a_listener_leaves_it_bound_and_lets_only_reuse_binders_in", || {
        for address in ["127.0.0.1", "::1", "::"] {
            let (fd, port) = listening(address, None, REUSE);
            let socket = the_only(port);
            let mut diag = SockDiag::open().unwrap();
            diag.destroy(&socket).unwrap();
            let left = the_only(port);
            assert_eq!((left.cookie, left.state), (socket.cookie, TcpState::BoundInactive));
            assert_eq!(try_bound(address, Some(port), STRICT).unwrap_err(), Errno::EADDRINUSE);
            let (_successor, _) = listening(address, Some(port), REUSE);
            assert!(matches!(diag.destroy(&socket), Err(DestroyError::NotAddressable)), "{address}");
            drop(fd);
            assert!(matches!(diag.destroy(&socket), Err(DestroyError::Gone)), "{address}");
            assert_eq!(the_only(port).state, TcpState::Listen, "the successor must not be hit");
        }
    });
}

#[test]
fn destroying_a_time_wait_socket_frees_a_strict_bind() {
    netns("destroying_a_time_wait_socket_frees_a_strict_bind", || {
        for address in ["127.0.0.1", "::"] {
            let (server, client, port) = accepted(address, STRICT);
            drop((server, client));
            let socket = in_state(port, TcpState::TimeWait);
            assert!(try_bound("127.0.0.1", Some(port), STRICT).is_err());
            SockDiag::open().unwrap().destroy(&socket).unwrap();
            try_bound("127.0.0.1", Some(port), STRICT).unwrap();
        }
    });
}

#[test]
fn destroying_a_connection_ends_it_for_both_sides() {
    netns("destroying_a_connection_ends_it_for_both_sides", || {
        let (_server, mut client, port) = accepted("::", REUSE);
        SockDiag::open().unwrap().destroy(&the_only(port)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(client.write_all(b"x").is_err());
    });
}

/// For the moment in which a socket becomes its TIME_WAIT socket the kernel finds neither by address.
#[test]
fn a_socket_that_is_being_closed_is_destroyed_or_gone_and_never_out_of_reach() {
    const CONNECTIONS: usize = 200;
    netns("a_socket_that_is_being_closed_is_destroyed_or_gone_and_never_out_of_reach", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
        let mut diag = SockDiag::open().unwrap();
        for _ in 0..20 {
            let connect = |_| {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (listener.accept().unwrap().0, client)
            };
            let (servers, clients): (Vec<_>, Vec<_>) = (0..CONNECTIONS).map(connect).unzip();
            let mut rows: BTreeMap<_, _> = dump(port)
                .into_iter()
                .filter(|row| row.state == TcpState::Established)
                .map(|row| (row.remote.unwrap(), row))
                .collect();
            let order: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
            let closing = std::thread::spawn(move || drop(servers));
            for address in order {
                let row = rows.remove(&(address.ip(), address.port())).unwrap();
                match diag.destroy(&row) {
                    // Old kernels do not destroy TIME_WAIT.
                    Ok(()) | Err(DestroyError::Gone | DestroyError::Unsupported { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            closing.join().unwrap();
        }
    });
}

#[test]
fn a_bound_only_socket_cannot_be_destroyed_by_address() {
    netns("a_bound_only_socket_cannot_be_destroyed_by_address", || {
        let (_fd, port) = bound("127.0.0.1", None, REUSE);
        let mut diag = SockDiag::open().unwrap();
        assert!(matches!(diag.destroy(&the_only(port)), Err(DestroyError::NotAddressable)));
    });
}

#[test]
fn of_a_reuse_port_group_none_is_destroyed_by_mistake() {
    netns("of_a_reuse_port_group_none_is_destroyed_by_mistake", || {
        let group = Flags { reuse_port: true, ..REUSE };
        let (_first, port) = listening("127.0.0.1", None, group);
        let _rest: Vec<_> = (0..3).map(|_| listening("127.0.0.1", Some(port), group)).collect();
        let mut diag = SockDiag::open().unwrap();
        for socket in dump(port) {
            let before = diag.dump(port).unwrap();
            match diag.destroy(&socket) {
                Ok(()) => {
                    let listening = |sockets: Vec<Socket>| -> BTreeSet<_> {
                        sockets
                            .into_iter()
                            .filter(|s| s.state == TcpState::Listen)
                            .map(|s| s.cookie.unwrap().0)
                            .collect()
                    };
                    let mut left = listening(before);
                    assert!(left.remove(&socket.cookie.unwrap().0));
                    assert_eq!(listening(diag.dump(port).unwrap()), left);
                }
                Err(DestroyError::NotAddressable) => assert_eq!(diag.dump(port).unwrap(), before),
                Err(error) => panic!("{error}"),
            }
        }
    });
}

#[test]
fn a_row_without_a_cookie_is_never_destroyed() {
    netns("a_row_without_a_cookie_is_never_destroyed", || {
        let (_fd, port) = listening("127.0.0.1", None, REUSE);
        let rows = procfs::sockets(port).unwrap();
        let mut diag = SockDiag::open().unwrap();
        assert!(matches!(diag.destroy(&rows[0]), Err(DestroyError::NoCookie)));
        assert_eq!(diag.dump(port).unwrap().len(), 1);
    });
}

#[test]
fn destroying_needs_cap_net_admin_and_dumping_needs_nothing() {
    if !root_or_skip("destroying_needs_cap_net_admin_and_dumping_needs_nothing") {
        return;
    }
    // A capability belongs to a thread: this one gives them up.
    let unprivileged = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let (fd, port) = listening("0.0.0.0", None, REUSE);
        become_nobody();
        let socket = the_only(port);
        let answer = SockDiag::open().unwrap().destroy(&socket);
        assert!(matches!(answer, Err(DestroyError::Denied { capability: "CAP_NET_ADMIN" })), "{answer:?}");
        assert_eq!(inode_of(&fd), socket.inode.unwrap());
    });
    unprivileged.join().unwrap();
}

#[test]
fn an_ipv6_address_is_kept_as_it_is() {
    netns("an_ipv6_address_is_kept_as_it_is", || {
        let (_fd, port) = listening("::1", None, REUSE);
        let socket = the_only(port);
        assert_eq!((socket.address, socket.mapped), (IpAddr::V6(Ipv6Addr::LOCALHOST), false));
    });
}

#[test]
#[ignore = "a measurement: cargo test -- --ignored --nocapture"]
fn measure_a_dump_a_proc_read_and_a_probe() {
    netns("measure_a_dump_a_proc_read_and_a_probe", || {
        const ROUNDS: usize = 1001;
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let listener = TcpListener::from(fd);
        let specs = ["127.0.0.1", "::1"].map(|address| crate::kernel::sandbox::spec(address, port, REUSE));
        let median = |work: &mut dyn FnMut()| {
            let mut spans: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let begun = std::time::Instant::now();
                    work();
                    begun.elapsed()
                })
                .collect();
            spans.sort_unstable();
            (spans[ROUNDS / 2], spans[ROUNDS * 99 / 100])
        };
        let mut diag = SockDiag::open().unwrap();
        let mut elsewhere = Vec::new();
        for connections in [0, 1000] {
            let (other, other_port) = listening("127.0.0.1", None, REUSE);
            let other = TcpListener::from(other);
            elsewhere.extend((0..connections).map(|_| {
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, other_port.get())).unwrap();
                (client, other.accept().unwrap())
            }));
            println!("with {connections} connections on another port (median, 99th percentile):");
            println!("  dump          {:?}", median(&mut || drop(diag.dump(port).unwrap())));
            println!("  open and dump {:?}", median(&mut || drop(dump(port))));
            println!("  /proc/net/tcp {:?}", median(&mut || drop(procfs::sockets(port).unwrap())));
            println!("  probe of two  {:?}", median(&mut || drop(crate::kernel::bind::bind_all(&specs))));
            println!(
                "  own process   {:?}",
                median(&mut || drop(procfs::process(guard_core::model::Tgid(std::process::id()))))
            );
        }
        drop(listener);
    });
}
