use std::net::{TcpListener, TcpStream};

use super::*;
use crate::kernel::sandbox::{REUSE, bound, eventually, inode_of, listening, netns, queued};
use crate::kernel::sock_diag::SockDiag;

/// What both sources can say.
fn comparable(mut sockets: Vec<Socket>) -> Vec<Socket> {
    for socket in &mut sockets {
        (socket.cookie, socket.v6only, socket.backlog, socket.expires) = (None, None, None, None);
    }
    sockets.sort_by_key(|socket| (socket.inode, socket.state, socket.remote));
    sockets
}

#[test]
fn proc_net_tcp_agrees_with_sock_diag() {
    netns("proc_net_tcp_agrees_with_sock_diag", || {
        for address in ["127.0.0.1", "::", "::ffff:127.0.0.1"] {
            let (fd, port) = listening(address, None, REUSE);
            let listener = TcpListener::from(fd);
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
            let (server, _) = listener.accept().unwrap();
            let _waiting = queued(Ipv4Addr::LOCALHOST, port, 1);
            let by_proc = sockets(port).unwrap();
            assert_eq!(by_proc.len(), 3);
            let by_diag = || SockDiag::open().unwrap().dump(port).unwrap();
            assert_eq!(comparable(by_proc), comparable(by_diag()));
            drop((server, client));
            eventually("TIME_WAIT in both", || {
                let time_wait = |s: &Socket| s.state == TcpState::TimeWait;
                (sockets(port).unwrap().iter().any(time_wait) && by_diag().iter().any(time_wait))
                    .then_some(())
            });
            assert_eq!(comparable(sockets(port).unwrap()), comparable(by_diag()));
        }
    });
}

#[test]
fn proc_net_tcp_tells_time_wait_s_remaining_time() {
    netns("proc_net_tcp_tells_time_wait_s_remaining_time", || {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let listener = TcpListener::from(fd);
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop((listener, server, client));
        let left = eventually("TIME_WAIT", || {
            let rows = sockets(port).unwrap();
            rows.into_iter().find(|s| s.state == TcpState::TimeWait).and_then(|s| s.expires)
        });
        assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(61), "{left:?}");
    });
}

#[test]
fn proc_net_tcp_does_not_list_bound_only_sockets() {
    netns("proc_net_tcp_does_not_list_bound_only_sockets", || {
        let (_fd, port) = bound("127.0.0.1", None, REUSE);
        assert_eq!(sockets(port).unwrap(), []);
    });
}

#[test]
fn the_thread_s_own_namespace_is_read() {
    let (fd, port) = listening("127.0.0.1", None, REUSE);
    let outside = inode_of(&fd);
    let is_listed = move || sockets(port).unwrap().iter().any(|socket| socket.inode == Some(outside));
    assert!(is_listed());
    netns("the_thread_s_own_namespace_is_read", move || {
        assert!(!is_listed());
        let (_here, _) = listening("127.0.0.1", Some(port), REUSE);
        assert_eq!(sockets(port).unwrap().len(), 1);
    });
}

#[test]
fn nonsense_rows_are_no_sockets() {
    for line in [
        "",
        "0:",
        "   0: 0100007F:1F90 00000000:0000 0A",
        "a b c d e f g h i j k l",
        "0: 01:1F90 1 1 1 1 1 1 1 1 1",
    ] {
        assert_eq!(row(line, 100), None, "{line:?}");
    }
}
