//! The conflict table of `bind()`, row by row, on the running kernel. Each test
//! is named after the row it pins.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use guard_core::model::{BindOutcome, Port};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::*;
use crate::kernel::sandbox::{Flags, REUSE, STRICT, bound, eventually, listening, local_port, netns, spec};
use crate::kernel::sock_diag::SockDiag;
use BindOutcome::{Bindable, InUse};
use guard_core::model::TcpState;

const V6ONLY: Flags = Flags { reuse_address: true, reuse_port: false, v6only: true };
const REUSE_PORT: Flags = Flags { reuse_address: false, reuse_port: true, v6only: false };

/// Outcomes of one probe with `SO_REUSEADDR` and one without.
fn reuse_and_strict(address: &str, port: Port) -> [BindOutcome; 2] {
    [REUSE, STRICT].map(|flags| bind_all(&[spec(address, port, flags)]).remove(0))
}

fn connect(port: Port) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap()
}

/// A listener with `flags`, one accepted connection and its client.
fn connected(flags: Flags) -> (TcpListener, TcpStream, TcpStream, Port) {
    let (fd, port) = listening("127.0.0.1", None, flags);
    let listener = TcpListener::from(fd);
    let client = connect(port);
    let (server, _) = listener.accept().unwrap();
    (listener, server, client, port)
}

fn wait_for_state(port: Port, state: TcpState) {
    let mut diag = SockDiag::open().unwrap();
    eventually(state.name(), || diag.dump(port).unwrap().iter().any(|s| s.state == state).then_some(()));
}

#[test]
fn an_unused_port_is_bindable() {
    netns("an_unused_port_is_bindable", || {
        let (fd, port) = bound("127.0.0.1", None, STRICT);
        drop(fd);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, Bindable]);
        assert_eq!(reuse_and_strict("::", port), [Bindable, Bindable]);
    });
}

#[test]
fn a_listener_on_the_same_address_or_the_wildcard_blocks_both() {
    netns("a_listener_on_the_same_address_or_the_wildcard_blocks_both", || {
        for (held, asked) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0"),
            ("127.0.0.1", "::"),
            ("::", "127.0.0.1"),
            ("::", "::1"),
            ("::1", "::"),
        ] {
            let (_fd, port) = listening(held, None, REUSE);
            assert_eq!(reuse_and_strict(asked, port), [InUse, InUse], "{held} is held, {asked} is asked for");
        }
    });
}

#[test]
fn a_listener_on_another_address_blocks_nobody() {
    netns("a_listener_on_another_address_blocks_nobody", || {
        let (_fd, port) = listening("127.0.0.1", None, REUSE);
        assert_eq!(reuse_and_strict("127.0.0.2", port), [Bindable, Bindable]);
        assert_eq!(reuse_and_strict("::1", port), [Bindable, Bindable]);
        assert_eq!(bind_all(&[spec("::", port, V6ONLY)]), [Bindable]);
        let strict_v6only = Flags { v6only: true, ..STRICT };
        assert_eq!(bind_all(&[spec("::", port, strict_v6only)]), [Bindable]);
    });
}

#[test]
fn an_established_connection_of_a_reuse_listener_blocks_only_strict() {
    netns("an_established_connection_of_a_reuse_listener_blocks_only_strict", || {
        let (listener, _server, _client, port) = connected(REUSE);
        drop(listener);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, InUse]);
        // "and listen ok": the probe's success is the service's success.
        drop(listening("127.0.0.1", Some(port), REUSE));
    });
}

#[test]
fn an_established_connection_of_a_strict_listener_blocks_both() {
    netns("an_established_connection_of_a_strict_listener_blocks_both", || {
        let (listener, _server, _client, port) = connected(STRICT);
        drop(listener);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
    });
}

#[test]
fn close_wait_and_fin_wait_block_as_the_listener_s_flag_says() {
    netns("close_wait_and_fin_wait_block_as_the_listener_s_flag_says", || {
        for (flags, expected) in [(REUSE, [Bindable, InUse]), (STRICT, [InUse, InUse])] {
            let (listener, _server, client, port) = connected(flags);
            drop(listener);
            drop(client);
            wait_for_state(port, TcpState::CloseWait);
            assert_eq!(reuse_and_strict("127.0.0.1", port), expected, "CLOSE_WAIT, {flags:?}");

            let (listener, server, _client, port) = connected(flags);
            drop(listener);
            drop(server);
            wait_for_state(port, TcpState::FinWait2);
            assert_eq!(reuse_and_strict("127.0.0.1", port), expected, "FIN_WAIT2, {flags:?}");
        }
    });
}

#[test]
fn time_wait_of_a_reuse_listener_blocks_only_strict() {
    netns("time_wait_of_a_reuse_listener_blocks_only_strict", || {
        let (listener, server, client, port) = connected(REUSE);
        drop((listener, server, client));
        wait_for_state(port, TcpState::TimeWait);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, InUse]);
    });
}

#[test]
fn time_wait_of_a_strict_listener_blocks_both() {
    netns("time_wait_of_a_strict_listener_blocks_both", || {
        let (listener, server, client, port) = connected(STRICT);
        drop((listener, server, client));
        wait_for_state(port, TcpState::TimeWait);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
    });
}

#[test]
fn a_client_s_own_source_port_blocks_both() {
    netns("a_client_s_own_source_port_blocks_both", || {
        let (_listener, server, client, _) = connected(REUSE);
        let port = Port::new(client.local_addr().unwrap().port()).unwrap();
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
        assert_eq!(reuse_and_strict("0.0.0.0", port), [InUse, InUse]);
        // The client closes first, so that TIME_WAIT is on its side.
        drop(client);
        drop(server);
        wait_for_state(port, TcpState::TimeWait);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
    });
}

#[test]
fn bound_but_not_listening_blocks_only_strict() {
    netns("bound_but_not_listening_blocks_only_strict", || {
        let (_fd, port) = bound("127.0.0.1", None, REUSE);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, InUse]);
        let (_fd, port) = bound("127.0.0.1", None, STRICT);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
    });
}

#[test]
fn reuse_port_is_shared_only_with_reuse_port() {
    netns("reuse_port_is_shared_only_with_reuse_port", || {
        let (_fd, port) = listening("127.0.0.1", None, REUSE_PORT);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
        assert_eq!(bind_all(&[spec("127.0.0.1", port, REUSE_PORT)]), [Bindable]);
    });
}

#[test]
fn an_inherited_descriptor_blocks_after_the_first_was_closed() {
    netns("an_inherited_descriptor_blocks_after_the_first_was_closed", || {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let inherited = fd.try_clone().unwrap();
        drop(fd);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
        drop(inherited);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, Bindable]);
    });
}

#[test]
fn a_listener_in_flight_over_a_unix_socket_blocks_both() {
    netns("a_listener_in_flight_over_a_unix_socket_blocks_both", || {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let carried = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&carried)];
        let bytes = [std::io::IoSlice::new(b"x")];
        sendmsg::<UnixAddr>(near.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        drop(fd);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
        drop((near, far));
    });
}

#[test]
fn an_open_probe_lets_a_reuse_service_bind_and_listen() {
    netns("an_open_probe_lets_a_reuse_service_bind_and_listen", || {
        let (fd, port) = bound("127.0.0.1", None, REUSE);
        drop(fd);
        let (outcome, probe) = try_bind(&spec("127.0.0.1", port, REUSE));
        assert_eq!(outcome, Bindable);
        let (service, _) = listening("127.0.0.1", Some(port), REUSE);
        let mut client = connect(port);
        let (mut server, _) = TcpListener::from(service).accept().unwrap();
        client.write_all(b"!").unwrap();
        server.read_exact(&mut [0]).unwrap();
        drop(probe);
    });
}

#[test]
fn all_are_held_together_and_let_go_together() {
    netns("all_are_held_together_and_let_go_together", || {
        let (fd, port) = bound("127.0.0.1", None, STRICT);
        drop(fd);
        let specs = [spec("127.0.0.1", port, STRICT), spec("::1", port, STRICT)];
        assert_eq!(bind_all(&specs), [Bindable, Bindable]);
        let (_one, _) = bound("127.0.0.1", Some(port), STRICT);
        let (_two, _) = bound("::1", Some(port), STRICT);
        assert_eq!(bind_all(&specs), [InUse, InUse]);
    });
}

#[test]
fn specs_that_exclude_each_other_do_not_report_themselves() {
    netns("specs_that_exclude_each_other_do_not_report_themselves", || {
        let (fd, port) = bound("127.0.0.1", None, STRICT);
        drop(fd);
        let addresses =
            ["0.0.0.0", "::", "127.0.0.1", "127.0.0.1", "::1", "::ffff:127.0.0.1", "::ffff:127.0.0.1"];
        let specs = addresses.map(|address| spec(address, port, STRICT));
        assert_eq!(bind_all(&specs), addresses.map(|_| Bindable));
        let mixed =
            [spec("127.0.0.1", port, REUSE), spec("127.0.0.1", port, STRICT), spec("127.0.0.1", port, REUSE)];
        assert_eq!(bind_all(&mixed), [Bindable, Bindable, Bindable]);
    });
}

#[test]
fn a_missing_address_is_told_from_a_busy_port() {
    netns("a_missing_address_is_told_from_a_busy_port", || {
        let port = Port::new(18789).unwrap();
        assert_eq!(bind_all(&[spec("192.0.2.1", port, REUSE)]), [BindOutcome::AddressMissing]);
        assert_eq!(bind_all(&[spec("2001:db8::1", port, REUSE)]), [BindOutcome::AddressMissing]);
    });
}

#[test]
fn a_probe_never_listens() {
    netns("a_probe_never_listens", || {
        let (fd, port) = bound("127.0.0.1", None, REUSE);
        drop(fd);
        let (_, probe): (_, Option<OwnedFd>) = try_bind(&spec("127.0.0.1", port, REUSE));
        assert_eq!(local_port(probe.as_ref().unwrap()), port);
        let refused = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port.get())));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn ipv6_is_available_on_the_test_machine() {
    assert!(ipv6_available());
}

#[test]
fn an_unbound_socket_may_fail_and_try_again() {
    netns("an_unbound_socket_may_fail_and_try_again", || {
        for (held, asked) in [
            (("127.0.0.1", REUSE), ("127.0.0.1", REUSE)),
            (("127.0.0.1", REUSE), ("::", REUSE)),
            (("::1", REUSE), ("::", V6ONLY)),
            (("0.0.0.0", STRICT), ("127.0.0.1", STRICT)),
            (("127.0.0.1", REUSE_PORT), ("127.0.0.1", STRICT)),
        ] {
            let (listener, port) = listening(held.0, None, held.1);
            let asked = spec(asked.0, port, asked.1);
            let mut prober = Prober::default();
            for _ in 0..100 {
                assert_eq!(prober.bind_all(&[asked]), [InUse]);
                assert_eq!(prober.ready.len(), 1, "one socket for all of them");
            }
            drop(listener);
            assert_eq!(prober.bind_all(&[asked]), [Bindable]);
            assert!(prober.ready.is_empty(), "a bound socket is not kept");
            prober.let_go();
            // Nor did the failures leave anything behind.
            assert_eq!(reuse_and_strict(held.0, port), [Bindable, Bindable]);
        }
    });
}

/// The gate does not wait until the probe is closed, and yet the service finds nobody in its way.
#[test]
fn a_probe_stays_open_only_where_the_service_can_start_beside_it() {
    netns("a_probe_stays_open_only_where_the_service_can_start_beside_it", || {
        let (fd, port) = bound("127.0.0.1", None, REUSE);
        drop(fd);
        let mut prober = Prober::default();
        assert_eq!(prober.bind_all(&[spec("127.0.0.1", port, REUSE)]), [Bindable]);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, InUse], "it is open");
        // It does not find itself, nor does it keep what it was not asked for again.
        assert_eq!(prober.bind_all(&[spec("127.0.0.1", port, STRICT)]), [Bindable]);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, Bindable], "it is closed");
        let mixed = [spec("127.0.0.1", port, REUSE), spec("::1", port, STRICT)];
        assert_eq!(prober.bind_all(&mixed), [Bindable, Bindable]);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, Bindable], "one is enough to close all");
        assert_eq!(prober.bind_all(&[spec("127.0.0.1", port, REUSE)]), [Bindable]);
        let (service, _) = listening("127.0.0.1", Some(port), REUSE);
        prober.let_go();
        assert_eq!(reuse_and_strict("127.0.0.1", port), [InUse, InUse]);
        drop(service);
        assert_eq!(reuse_and_strict("127.0.0.1", port), [Bindable, Bindable]);
    });
}

#[test]
fn what_was_bound_for_a_moment_is_ready_for_the_next_probe() {
    netns("what_was_bound_for_a_moment_is_ready_for_the_next_probe", || {
        let (listener, port) = listening("127.0.0.1", None, REUSE);
        let both = [spec("127.0.0.1", port, REUSE), spec("::1", port, REUSE)];
        let mut prober = Prober::default();
        for _ in 0..3 {
            assert_eq!(prober.bind_all(&both), [InUse, Bindable]);
            prober.let_go();
            assert_eq!(prober.ready.len(), 2);
        }
        assert_eq!(bind_all(&[spec("::1", port, STRICT)]), [Bindable], "none of them is bound");
        drop(listener);
        assert_eq!(prober.bind_all(&both), [Bindable, Bindable]);
        let many: Vec<BindSpec> = (1..=100).map(|low| spec(&format!("127.0.1.{low}"), port, REUSE)).collect();
        let (_listener, _) = listening("0.0.0.0", Some(port), REUSE);
        assert_eq!(prober.bind_all(&many), vec![InUse; 100]);
        assert_eq!(prober.ready.len(), MOST_READY);
        assert_eq!(prober.bind_all(&many), vec![InUse; 100]);
    });
}
