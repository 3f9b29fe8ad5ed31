//! Programs on kernel functions, which some kernels refuse: either they work, or
//! they are missing with the reason and everything else works.

use std::net::{TcpListener, TcpStream};

use guard_common::{INET_CSK_GET_PORT, INET_PUT_PORT, INET_TWSK_KILL};
use guard_core::model::TcpState;

use super::*;
use crate::kernel::bpf::settings::KernelTypes;
use crate::kernel::sandbox::{eventually, listening};
use crate::kernel::sock_diag::SockDiag;

/// What is known to be in the way, in the words of its reason.
const KNOWN: [&str; 4] = ["EPERM", "trampolines", "BTF", "before Linux 6.9"];

/// Whether this kernel lets programs hook its functions. If not, it must say why
/// in a word that is known: a new one is a good find.
pub(super) fn may_hook() -> bool {
    let types = KernelTypes::read();
    let asked =
        [INET_PUT_PORT, INET_TWSK_KILL, INET_CSK_GET_PORT].map(|function| types.hook_function(&function));
    for answer in &asked {
        if let Err(error) = answer {
            let why = error.to_string();
            assert!(KNOWN.iter().any(|word| why.contains(word)), "{why}");
        }
    }
    asked.iter().all(Result::is_ok)
}

#[test]
fn a_kernel_that_refuses_programs_on_functions_has_the_ebpf_tier_and_says_why() {
    const NAME: &str = "a_kernel_that_refuses_programs_on_functions_has_the_ebpf_tier_and_says_why";
    netns(NAME, || {
        let port = free_port();
        let options = BpfOptions {
            ports: vec![listeners(port)],
            failed_binds: FailedBinds::WhereCheap,
            ..BpfOptions::default()
        };
        let Some(mut watcher) = Watcher::load(NAME, &options) else { return };
        let losses: Vec<String> = watcher.bpf.losses().iter().map(ToString::to_string).collect();
        if may_hook() {
            assert_eq!(losses, [""; 0]);
        } else {
            assert_eq!(losses.len(), 3, "{losses:?}");
            for (loss, function) in
                losses.iter().zip(["inet_put_port", "inet_twsk_kill", "inet_csk_get_port"])
            {
                assert!(loss.contains(function), "{loss}");
                assert!(KNOWN.iter().any(|word| loss.contains(word)), "{loss}");
            }
        }
        drop(listening("127.0.0.1", Some(port), REUSE));
        assert_eq!(words(watcher.until_released(port)), LIFE);
    });
}

#[test]
fn a_release_is_exact_where_functions_may_be_hooked() {
    const NAME: &str = "a_release_is_exact_where_functions_may_be_hooked";
    each_way(NAME, |attach| {
        for address in ["127.0.0.1", "::1"] {
            let port = free_port();
            let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
            let (fd, _) = listening(address, Some(port), REUSE);
            drop(fd);
            let seen = watcher.until_released(port);
            assert_eq!(words(seen), LIFE, "{address}");
            let Some(Event::Released(it)) = seen.last() else { panic!("{seen:#?}") };
            assert_eq!(it.exact, may_hook(), "{address}");
            assert_eq!((it.socket.local.to_string().as_str(), it.socket.port), (address, port));
            assert_eq!(it.actor.as_ref().map(|actor| actor.tgid), Some(Tgid(std::process::id())));
            assert_eq!(watcher.remembered(), 0);
        }
    });
}

/// It gives its port up before it leaves LISTEN, so nothing is left to be put.
#[test]
fn a_listener_on_a_port_that_the_kernel_chose_is_released_too() {
    const NAME: &str = "a_listener_on_a_port_that_the_kernel_chose_is_released_too";
    each_way(NAME, |attach| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
        let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
        drop(listener);
        assert_eq!(words(watcher.until_released(port)), LIFE[1..]);
        assert_eq!(watcher.remembered(), 0);
    });
}

#[test]
fn the_end_of_time_wait_is_seen_where_functions_may_be_hooked() {
    const NAME: &str = "the_end_of_time_wait_is_seen_where_functions_may_be_hooked";
    netns(NAME, || {
        if !may_hook() {
            // The answer itself is asserted by may_hook() and by the tests above.
            return eprintln!("{NAME}: this kernel refuses programs on its functions");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // Who closes first keeps the TIME_WAIT.
        drop(listener.accept().unwrap());
        drop(client);
        drop(listener);
        let mut diag = SockDiag::open().unwrap();
        let mini = eventually("a TIME_WAIT socket", || {
            diag.dump(port).unwrap().into_iter().find(|socket| socket.state == TcpState::TimeWait)
        });
        let watch = Watch { connections: true, ..listeners(port) };
        let Some(mut watcher) = Watcher::watching(NAME, AttachBy::Auto, watch) else { return };
        if let Err(error) = diag.destroy(&mini) {
            return skip(NAME, &format!("this kernel does not destroy TIME_WAIT sockets: {error}"));
        }
        let seen = watcher.until("the end of TIME_WAIT", |seen| !seen.is_empty());
        let [Event::TimeWaitEnded(it)] = seen else { panic!("{seen:#?}") };
        assert_eq!((it.port, it.netns), (port, Some(here())));
        let left = diag.dump(port).unwrap();
        assert!(left.iter().all(|socket| socket.state != TcpState::TimeWait), "{left:?}");
    });
}
