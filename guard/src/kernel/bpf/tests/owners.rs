//! Who has a descriptor: the iterator's answer beside that of `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use guard_core::model::{ProcessId, SocketInode};
use nix::libc;
use nix::sys::socket::{Backlog, ControlMessage, MsgFlags, SockaddrIn, UnixAddr, bind, listen, sendmsg};

use super::*;
use crate::kernel::bpf::settings::KernelTypes;
use crate::kernel::procfs;
use crate::kernel::sandbox::{Actor, Alone, Sleeper, inode_of, listening, root_or_skip};

/// Both ways to ask.
pub(crate) struct Both {
    lookup: OwnerLookup,
}

type Answer = BTreeMap<SocketInode, Vec<ProcessId>>;

impl Both {
    pub(crate) fn load(test: &str) -> Option<Self> {
        Some(Self { lookup: or_skip(test, OwnerLookup::load())? })
    }

    pub(crate) fn by_bpf(&mut self, inodes: &BTreeSet<SocketInode>) -> Answer {
        let mut answer: BTreeMap<SocketInode, BTreeSet<ProcessId>> =
            inodes.iter().map(|&inode| (inode, BTreeSet::new())).collect();
        for found in self.lookup.descriptors(inodes).unwrap() {
            answer.get_mut(&found.inode).expect("a socket that was asked for").insert(found.process);
        }
        answer.into_iter().map(|(inode, owners)| (inode, owners.into_iter().collect())).collect()
    }

    /// With the start times of those that are still there. Also which processes
    /// were closed to it.
    fn by_proc(inodes: &BTreeSet<SocketInode>) -> (Answer, BTreeSet<Tgid>) {
        let scan = procfs::owners(inodes);
        let identify = |tgid: Tgid| procfs::start_time(tgid).unwrap().map(|start| ProcessId { tgid, start });
        let answer = scan
            .owners
            .into_iter()
            .map(|(inode, owners)| (inode, owners.into_iter().filter_map(identify).collect()));
        (answer.collect(), scan.closed)
    }

    /// What both say about a world that stands still.
    fn agree(&mut self, inodes: &BTreeSet<SocketInode>) -> Answer {
        let mut by_bpf = self.by_bpf(inodes);
        let (by_proc, closed) = Self::by_proc(inodes);
        for owners in by_bpf.values_mut() {
            owners.retain(|owner| !closed.contains(&owner.tgid));
        }
        assert_eq!(by_bpf, by_proc);
        by_bpf
    }

    fn agree_on(&mut self, inode: SocketInode) -> Vec<Tgid> {
        let answer = self.agree(&BTreeSet::from([inode]));
        answer[&inode].iter().map(|owner| owner.tgid).collect()
    }
}

fn own() -> Tgid {
    Tgid(std::process::id())
}

fn sorted(tgids: impl IntoIterator<Item = Tgid>) -> Vec<Tgid> {
    tgids.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Runs `body` alone in a network namespace of its own, with both ways to ask.
fn both_alone(test: &'static str, body: impl FnOnce(&mut Both, &Alone) + Send + 'static) {
    netns_alone(test, move |alone| {
        if let Some(mut both) = Both::load(test) {
            body(&mut both, alone);
        }
    });
}

#[test]
fn the_iterator_finds_every_sharer() {
    both_alone("the_iterator_finds_every_sharer", |both, alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let children: Vec<Sleeper> = (0..5).map(|_| Sleeper::fork(alone)).collect();
        let inherited = || children.iter().map(Sleeper::tgid);
        assert_eq!(both.agree_on(inode), sorted(inherited().chain([own()])));
        drop(fd);
        assert_eq!(both.agree_on(inode), sorted(inherited()));
        drop(children);
        assert_eq!(both.agree_on(inode), []);
    });
}

/// Where the short way is not gone the long one hides it.
#[test]
fn the_iterator_is_loaded_in_the_short_way_and_in_that_of_the_tier() {
    const NAME: &str = "the_iterator_is_loaded_in_the_short_way_and_in_that_of_the_tier";
    both_alone(NAME, |both, alone| {
        let types = KernelTypes::read().owners().expect("it was loaded once");
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let children: Vec<Sleeper> = (0..2).map(|_| Sleeper::fork(alone)).collect();
        let inodes = BTreeSet::from([inode_of(&fd)]);
        let expected = both.by_bpf(&inodes);
        assert_eq!(expected[&inode_of(&fd)].len(), 3);
        for way in [load::owner_lookup_alone, load::owner_lookup_by_aya] {
            let lookup = way(types).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(Both { lookup }.by_bpf(&inodes), expected);
        }
        drop(children);
    });
}

#[test]
fn the_iterator_tells_start_times_as_proc_does() {
    both_alone("the_iterator_tells_start_times_as_proc_does", |both, alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inodes = BTreeSet::from([inode_of(&fd)]);
        let child = Sleeper::fork(alone);
        let found = both.by_bpf(&inodes);
        assert!(found[&inode_of(&fd)].contains(&child.id()));
    });
}

#[test]
fn the_lookup_can_be_rehearsed() {
    netns("the_lookup_can_be_rehearsed", || {
        if let Some(mut both) = Both::load("the_lookup_can_be_rehearsed") {
            both.lookup.rehearse().unwrap();
        }
    });
}

#[test]
fn the_iterator_says_which_descriptor_it_is() {
    netns("the_iterator_says_which_descriptor_it_is", || {
        let Some(mut both) = Both::load("the_iterator_says_which_descriptor_it_is") else { return };
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let copy = fd.try_clone().unwrap();
        let found = both.lookup.descriptors(&BTreeSet::from([inode_of(&fd)])).unwrap();
        let own: BTreeSet<RawFd> =
            found.iter().filter(|it| it.process.tgid == own() && it.of_leader).map(|it| it.fd).collect();
        assert!(own.is_superset(&BTreeSet::from([fd.as_raw_fd(), copy.as_raw_fd()])), "{found:?}");
    });
}

#[test]
fn more_output_than_the_kernel_buffers_and_more_sockets_than_the_map_holds() {
    let name = "more_output_than_the_kernel_buffers_and_more_sockets_than_the_map_holds";
    both_alone(name, |both, alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let _copies: Vec<OwnedFd> = (0..500).map(|_| fd.try_clone().unwrap()).collect();
        let children: Vec<Sleeper> = (0..20).map(|_| Sleeper::fork(alone)).collect();
        let inode = inode_of(&fd);
        let nobody_s = (0..10_000).map(|number| SocketInode(u64::MAX - number));
        let inodes: BTreeSet<SocketInode> = nobody_s.chain([inode]).collect();
        let descriptors = both.lookup.descriptors(&inodes).unwrap();
        // 320 KiB of records; the kernel's buffer has 32 on most machines.
        assert_eq!(descriptors.len(), 21 * 501);
        let owners = sorted(descriptors.iter().map(|it| it.process.tgid));
        assert_eq!(owners, sorted(children.iter().map(Sleeper::tgid).chain([own()])));
        // What was asked before is forgotten.
        assert_eq!(both.lookup.descriptors(&BTreeSet::from([SocketInode(u64::MAX)])).unwrap(), []);
    });
}

#[test]
fn the_iterator_sees_the_threads_of_a_dead_leader() {
    both_alone("the_iterator_sees_the_threads_of_a_dead_leader", |both, alone| {
        let actor = Actor::play("leaderless", alone);
        assert_eq!(both.agree_on(actor.inode()), [actor.tgid()]);
    });
}

#[test]
fn the_iterator_sees_a_thread_s_own_descriptor_table() {
    both_alone("the_iterator_sees_a_thread_s_own_descriptor_table", |both, alone| {
        let actor = Actor::play("own-table", alone);
        assert_eq!(both.agree_on(actor.inode()), [actor.tgid()]);
        let found = both.lookup.descriptors(&BTreeSet::from([actor.inode()])).unwrap();
        assert!(found.iter().all(|it| !it.of_leader), "{found:?}");
    });
}

#[test]
fn a_socket_in_flight_is_in_nobody_s_table() {
    both_alone("a_socket_in_flight_is_in_nobody_s_table", |both, _| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let (near, far) = UnixDatagram::pair().unwrap();
        let carried = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&carried)];
        let text = [std::io::IoSlice::new(b"x")];
        sendmsg::<UnixAddr>(near.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        drop(fd);
        assert_eq!(both.agree_on(inode), []);
        drop((near, far));
    });
}

#[test]
fn a_socket_registered_with_io_uring_is_in_nobody_s_table() {
    const NAME: &str = "a_socket_registered_with_io_uring_is_in_nobody_s_table";
    const REGISTER_FILES: u32 = 2;
    both_alone(NAME, |both, _| {
        let (fd, port) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let mut parameters = [0_u8; 120];
        // SAFETY: `struct io_uring_params` has 120 bytes, which the kernel reads and writes.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        let ring = match nix::errno::Errno::result(ring) {
            // SAFETY: the kernel just made it.
            Ok(ring) => unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring as i32) },
            Err(errno) => return skip(NAME, &format!("io_uring_setup: {errno}")),
        };
        let files = [fd.as_raw_fd()];
        // SAFETY: the kernel reads one number from `files`.
        let registered = unsafe {
            libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_FILES, files.as_ptr(), 1)
        };
        nix::errno::Errno::result(registered).unwrap();
        drop(fd);
        assert_eq!(both.agree_on(inode), []);
        assert!(crate::kernel::sandbox::try_bound("127.0.0.1", Some(port), REUSE).is_err());
        drop(ring);
    });
}

/// A file's number in a file system may be that of a socket: what lies there as
/// a name for a socket is none, even when it is open.
#[test]
fn the_name_of_a_unix_socket_is_no_socket() {
    both_alone("the_name_of_a_unix_socket_is_no_socket", |both, _| {
        let path = std::env::temp_dir().join(format!("portguard-test-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let name = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_ne!(inode_of(&name), inode_of(&listener));
        assert_eq!(both.agree_on(inode_of(&name)), []);
        assert_eq!(both.agree_on(inode_of(&listener)), [own()]);
    });
}

/// Go makes its listeners this way: the socket in the table of TCP is a part of
/// the one that the process has.
#[test]
fn a_listener_of_multipath_tcp_has_its_owner() {
    const NAME: &str = "a_listener_of_multipath_tcp_has_its_owner";
    both_alone(NAME, |both, _| {
        // SAFETY: no pointer is passed.
        let made = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP)
        };
        let fd = match nix::errno::Errno::result(made) {
            // SAFETY: the kernel just made it.
            Ok(fd) => unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) },
            Err(errno) => return skip(NAME, &format!("no multipath TCP: {errno}")),
        };
        bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&fd, Backlog::new(1).unwrap()).unwrap();
        let port = crate::kernel::sandbox::local_port(&fd);
        let table = crate::kernel::sock_diag::SockDiag::open().unwrap().dump(port).unwrap();
        assert_eq!(table.iter().map(|row| row.inode).collect::<Vec<_>>(), [Some(inode_of(&fd))]);
        let (mut cookie, mut length) = (0_u64, 8);
        // SAFETY: the kernel writes at most `length` bytes to `cookie`, which is that long.
        let answer = unsafe {
            let cookie = (&raw mut cookie).cast();
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, cookie, &raw mut length)
        };
        assert_eq!(answer, 0);
        // So no cookie can be compared.
        assert_ne!(table[0].cookie.unwrap().0, cookie);
        assert_eq!(both.agree_on(inode_of(&fd)), [own()]);
    });
}

#[test]
fn an_owner_in_a_child_pid_namespace_has_a_number_here() {
    both_alone("an_owner_in_a_child_pid_namespace_has_a_number_here", |both, _| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        // A namespace is for the children to come, and belongs to the thread.
        let inside = thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWPID).unwrap();
            Command::new("cat").stdin(Stdio::piped()).stdout(fd).spawn().unwrap()
        });
        let mut child = inside.join().unwrap();
        assert_eq!(both.agree_on(inode), [Tgid(child.id())]);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn in_a_child_pid_namespace_the_iterator_numbers_as_the_namespace_does() {
    const NAME: &str = "in_a_child_pid_namespace_the_iterator_numbers_as_the_namespace_does";
    if !root_or_skip(NAME) || Both::load(NAME).is_none() {
        return;
    }
    let said = thread::spawn(|| {
        let alone = crate::kernel::sandbox::alone();
        nix::sched::unshare(CloneFlags::CLONE_NEWPID).unwrap();
        Actor::play("owners-inside", &alone).line.clone()
    });
    let said = said.join().unwrap();
    if let Some(why) = said.strip_prefix(DENIED) {
        return skip(NAME, why);
    }
    // Process 1 of its namespace, with the start time that /proc shows there.
    assert_eq!(said, "[1] as in proc: true");
}

const DENIED: &str = "denied: ";

/// The other side of the test above.
pub(crate) fn asked_inside() -> String {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, private, none).unwrap();
    nix::mount::mount(Some("proc"), "/proc", Some("proc"), nix::mount::MsFlags::empty(), none).unwrap();
    let (fd, _) = listening("127.0.0.1", None, REUSE);
    let inodes = BTreeSet::from([inode_of(&fd)]);
    let mut both = match OwnerLookup::load() {
        Ok(lookup) => Both { lookup },
        // Only here the program reads memory by address, which a locked down kernel refuses.
        Err(error @ BpfError::Denied { .. }) => return format!("{DENIED}{error}"),
        Err(error) => panic!("{error}"),
    };
    let found = both.by_bpf(&inodes).remove(&inode_of(&fd)).unwrap();
    let tgids: Vec<u32> = found.iter().map(|owner| owner.tgid.0).collect();
    format!("{tgids:?} as in proc: {}", Both::by_proc(&inodes).0[&inode_of(&fd)] == found)
}

/// Numbers in an order that a seed fixes.
struct Dice(u64);

impl Dice {
    /// Below `sides`, by xorshift64*.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

#[test]
fn both_agree_whatever_is_opened_closed_forked_and_ended() {
    both_alone("both_agree_whatever_is_opened_closed_forked_and_ended", |both, alone| {
        for seed in 1..=6 {
            let mut dice = Dice(seed);
            let mut sockets: Vec<OwnedFd> = Vec::new();
            let mut children: Vec<Sleeper> = Vec::new();
            let mut known: BTreeSet<SocketInode> = BTreeSet::new();
            for step in 0..40 {
                match dice.roll(6) {
                    0 => sockets.push(listening("127.0.0.1", None, REUSE).0),
                    1 if !sockets.is_empty() => {
                        let which = dice.roll(sockets.len());
                        sockets.push(sockets[which].try_clone().unwrap());
                    }
                    2 if !sockets.is_empty() => drop(sockets.swap_remove(dice.roll(sockets.len()))),
                    3 | 4 if children.len() < 12 => children.push(Sleeper::fork(alone)),
                    5 if !children.is_empty() => drop(children.swap_remove(dice.roll(children.len()))),
                    _ => {}
                }
                known.extend(sockets.iter().map(inode_of));
                eprintln!("seed {seed}, step {step}: {} sockets, {} children", sockets.len(), children.len());
                both.agree(&known);
            }
        }
    });
}

#[test]
fn those_who_stay_are_found_while_others_come_go_and_exec() {
    both_alone("those_who_stay_are_found_while_others_come_go_and_exec", |both, alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let stay: Vec<Sleeper> = (0..3).map(|_| Sleeper::fork(alone)).collect();
        let staying = sorted(stay.iter().map(Sleeper::tgid).chain([own()]));
        let passing = Mutex::new(BTreeSet::new());
        let stop = AtomicBool::new(false);
        let answers = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Shares the listener until its end, and until its exec.
                    let child = Sleeper::fork(alone);
                    passing.lock().unwrap().insert(child.tgid());
                    let mut execs = Command::new("true").spawn().unwrap();
                    passing.lock().unwrap().insert(Tgid(execs.id()));
                    execs.wait().unwrap();
                    drop(child);
                }
            });
            let inodes = BTreeSet::from([inode]);
            let answers: Vec<_> = (0..60)
                .map(|_| {
                    let by_bpf = both.by_bpf(&inodes).remove(&inode).unwrap();
                    (by_bpf, procfs::owners(&inodes).owners[&inode].clone())
                })
                .collect();
            stop.store(true, Ordering::Relaxed);
            answers
        });
        let passing = passing.into_inner().unwrap();
        let without = |owners: Vec<Tgid>| sorted(owners.into_iter().filter(|it| !passing.contains(it)));
        for (by_bpf, by_proc) in answers {
            assert_eq!(without(by_bpf.iter().map(|it| it.tgid).collect()), staying);
            assert_eq!(without(by_proc), staying);
        }
        drop(stay);
    });
}

#[test]
fn the_lookup_goes_on_without_the_other_programs() {
    const NAME: &str = "the_lookup_goes_on_without_the_other_programs";
    netns(NAME, || {
        let Some(mut bpf) = or_skip(NAME, Bpf::load(&BpfOptions::default())) else { return };
        let mut lookup =
            bpf.take_owner_lookup().expect("a kernel with the ebpf tier and without the iterator");
        drop(bpf);
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let found = lookup.descriptors(&BTreeSet::from([inode_of(&fd)])).unwrap();
        assert!(found.iter().any(|it| it.process.tgid == own()));
    });
}
