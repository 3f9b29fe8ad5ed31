//! On the running kernel, as root, each in a network namespace of its own.

mod binds;
mod degraded;
mod functions;
mod measure;
mod measure_owners;
pub(crate) mod owners;
mod processes;
mod rest;
mod sockets;

use std::time::Duration;

use guard_core::model::NetnsInode;
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::*;
use crate::kernel::bpf::tracefs::TracefsError;
use crate::kernel::sandbox::{REUSE, bound, netns, netns_alone, skip};

/// Longest that a test waits for an event before it calls it lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs, and every event since.
struct Watcher {
    bpf: Bpf,
    epoll: Epoll,
    seen: Vec<Event>,
}

impl Watcher {
    /// `None`, and a noted skip, where this machine has no BPF.
    fn load(test: &str, options: &BpfOptions) -> Option<Self> {
        let bpf = or_skip(test, Bpf::load(options))?;
        match options.attach {
            AttachBy::Auto => {}
            AttachBy::Raw => assert_eq!(bpf.attached_by(), AttachedBy::Raw),
            AttachBy::Classic => assert_eq!(bpf.attached_by(), AttachedBy::Classic),
        }
        let losses: Vec<_> = bpf.losses().iter().filter(|loss| !loss.is_minor()).collect();
        assert!(losses.is_empty(), "a kernel that hides something is a good find: look at it: {losses:?}");
        Some(Self::of(bpf))
    }

    fn of(bpf: Bpf) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&bpf, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
        Self { bpf, epoll, seen: Vec::new() }
    }

    fn watching(test: &str, attach: AttachBy, watch: Watch) -> Option<Self> {
        Self::load(test, &BpfOptions { attach, ports: vec![watch], ..BpfOptions::default() })
    }

    /// Everything seen, once `enough` of it.
    fn until(&mut self, what: &str, enough: impl Fn(&[Event]) -> bool) -> &[Event] {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let seen = &mut self.seen;
            self.bpf.drain(usize::MAX, |event| seen.push(event));
            if enough(&self.seen) {
                assert_eq!(self.bpf.lost().unwrap(), Lost::default());
                return &self.seen;
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            assert!(!left.is_zero(), "{what}: not seen, only {:#?}", self.seen);
            let mut events = [EpollEvent::empty()];
            self.epoll.wait(&mut events, EpollTimeout::try_from(left).unwrap()).unwrap();
        }
    }

    /// Everything until the release of a listener on `port`.
    fn until_released(&mut self, port: Port) -> &[Event] {
        self.until("a release", |seen| {
            seen.iter().any(
                |event| matches!(event, Event::Released(it) if it.socket.port == port && it.was_listener),
            )
        })
    }

    fn remembered(&self) -> usize {
        let map = self.bpf.ebpf.map(map::CLOSING).unwrap();
        let closing: HashMap<_, u64, u64> = HashMap::try_from(map).unwrap();
        closing.keys().count()
    }
}

/// Both kinds of tracepoint must tell the same story.
const WAYS: [AttachBy; 2] = [AttachBy::Raw, AttachBy::Classic];

/// Runs `body` for each kind in a network namespace of its own.
fn each_way(test: &'static str, body: impl Fn(AttachBy) + Copy + Send + 'static) {
    for attach in WAYS {
        netns(test, move || {
            eprintln!("{test}: {attach:?}");
            body(attach);
        });
    }
}

/// As [`each_way`], for a `body` that starts processes.
fn each_way_alone(test: &'static str, body: impl Fn(AttachBy) + Copy + Send + 'static) {
    for attach in WAYS {
        netns_alone(test, move |_| {
            eprintln!("{test}: {attach:?}");
            body(attach);
        });
    }
}

/// Runs `body` in yet another network namespace, whose loopback interface is
/// down. Not by [`netns`]: the stage is taken already, and somebody who wants it
/// alone may be waiting in between.
fn elsewhere(body: impl FnOnce() + Send + 'static) {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        body();
    };
    std::thread::spawn(inside).join().unwrap();
}

fn here() -> NetnsInode {
    crate::kernel::netns::current().unwrap()
}

fn listeners(port: Port) -> Watch {
    Watch { netns: here(), port, connections: false }
}

/// A port that nobody uses in this network namespace.
fn free_port() -> Port {
    bound("127.0.0.1", None, REUSE).1
}

/// One word per event, for comparing sequences.
fn word(event: &Event) -> String {
    match event {
        Event::StateChanged(it) => format!("{}>{}", it.old.name(), it.new.name()),
        Event::Released(it) if it.was_listener => "released".into(),
        Event::Released(_) => "gone".into(),
        Event::Exited(it) => format!("exited {:?}", it.status),
        Event::TimeWaitEnded(_) => "time wait ended".into(),
        Event::BindFailed(it) => format!("{} lost", if it.by_listen { "listen" } else { "bind" }),
        Event::Unknown { kind, .. } => format!("unknown {kind}"),
    }
}

fn words(events: &[Event]) -> Vec<String> {
    events.iter().map(word).collect()
}

fn socket(event: &Event) -> KernelSocket {
    match event {
        Event::StateChanged(it) => it.socket,
        Event::Released(it) => it.socket,
        other => panic!("not about a socket: {other:?}"),
    }
}

fn actor(event: &Event) -> Option<Tgid> {
    match event {
        Event::StateChanged(it) => it.actor.as_ref().map(|actor| actor.tgid),
        Event::Released(it) => it.actor.as_ref().map(|actor| actor.tgid),
        _ => None,
    }
}

const LIFE: [&str; 3] = ["CLOSE>LISTEN", "LISTEN>CLOSE", "released"];

/// `None`, and a noted skip, where this machine or build has no BPF.
fn or_skip<T>(test: &str, outcome: Result<T, BpfError>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) if error.is_a_fault() => {
            panic!("{error}")
        }
        Err(error @ BpfError::Tracefs(TracefsError::Mismatch { .. })) => panic!("{error}"),
        Err(error) => {
            skip(test, &error.to_string());
            None
        }
    }
}
