use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::*;
use crate::kernel::procfs;
use crate::kernel::sandbox::{
    Actor, REUSE, Sleeper, alone, become_nobody, inode_of, listening, netns, netns_alone, root_or_skip,
};

fn owners_of(inode: SocketInode) -> Vec<Tgid> {
    let scan = owners(&BTreeSet::from([inode]));
    no_unexpected_blindness(&scan);
    scan.owners[&inode].clone()
}

/// As root everything is seen, but for what a security module protects.
fn no_unexpected_blindness(scan: &OwnerScan) {
    match &scan.complete {
        Ok(()) => assert_eq!(scan.closed, BTreeSet::new()),
        Err(Unseen::Closed(closed)) => assert!(closed.iter().eq(&scan.closed) && !closed.is_empty()),
        Err(other) => panic!("{other:?}"),
    }
}

fn own() -> Tgid {
    Tgid(std::process::id())
}

fn ascending(mut tgids: Vec<Tgid>) -> Vec<Tgid> {
    tgids.sort_unstable();
    tgids
}

#[test]
fn fork_sharers_are_all_found() {
    netns_alone("fork_sharers_are_all_found", |alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let children: Vec<Sleeper> = (0..5).map(|_| Sleeper::fork(alone)).collect();
        let everybody = children.iter().map(Sleeper::tgid).chain([own()]).collect();
        assert_eq!(owners_of(inode), ascending(everybody));
        // The orphan's case: who made the socket has closed it.
        drop(fd);
        assert_eq!(owners_of(inode), ascending(children.iter().map(Sleeper::tgid).collect()));
        drop(children);
        assert_eq!(owners_of(inode), []);
    });
}

/// Whoever has most descriptors of all does not keep it from that.
#[test]
fn a_scan_is_broken_off_in_the_middle_of_a_process() {
    netns_alone("a_scan_is_broken_off_in_the_middle_of_a_process", |_alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inodes = BTreeSet::from([inode_of(&fd)]);
        let asked = &Cell::new(0);
        let better_at = |at: usize| {
            move || {
                asked.set(asked.get() + 1);
                asked.get() >= at
            }
        };
        let in_all = owners_unless(&inodes, &better_at(usize::MAX)).unwrap();
        assert_eq!(in_all.owners[&inode_of(&fd)], [own()]);
        let descriptors = owned_by_unless(own(), &inodes, &better_at(usize::MAX));
        assert_eq!(descriptors, Some(inodes.clone()));
        for at in [1, 2, 3] {
            asked.set(0);
            assert_eq!((owners_unless(&inodes, &better_at(at)), asked.get()), (None, at));
            asked.set(0);
            assert_eq!((owned_by_unless(own(), &inodes, &better_at(at)), asked.get()), (None, at));
        }
    });
}

#[test]
fn several_sockets_are_found_in_one_scan() {
    netns("several_sockets_are_found_in_one_scan", || {
        let (first, _) = listening("127.0.0.1", None, REUSE);
        let (second, _) = listening("127.0.0.1", None, REUSE);
        let nobody = SocketInode(u64::MAX);
        let scan = owners(&BTreeSet::from([inode_of(&first), inode_of(&second), nobody]));
        assert!(scan.owners[&inode_of(&first)].contains(&own()));
        assert!(scan.owners[&inode_of(&second)].contains(&own()));
        assert_eq!(scan.owners[&nobody], []);
        assert!(scan.descriptors.contains_key(&inode_of(&first)));
        assert!(!scan.descriptors.contains_key(&nobody));
    });
}

#[test]
fn a_listener_in_flight_has_no_owner() {
    netns("a_listener_in_flight_has_no_owner", || {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let carried = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&carried)];
        sendmsg::<UnixAddr>(
            near.as_raw_fd(),
            &[std::io::IoSlice::new(b"x")],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        drop(fd);
        assert_eq!(owners_of(inode), []);
        drop((near, far));
    });
}

#[test]
fn the_threads_of_a_dead_leader_are_looked_at() {
    netns_alone("the_threads_of_a_dead_leader_are_looked_at", |alone| {
        let actor = Actor::play("leaderless", alone);
        let fds = std::fs::read_dir(format!("/proc/{}/fd", actor.tgid())).unwrap();
        assert_eq!(fds.count(), 0, "a dead leader shows no descriptors");
        assert_eq!(owners_of(actor.inode()), [actor.tgid()]);
    });
}

#[test]
fn a_thread_s_own_descriptor_table_is_looked_at_before_nobody_is_believed() {
    netns_alone("a_thread_s_own_descriptor_table_is_looked_at_before_nobody_is_believed", |alone| {
        let actor = Actor::play("own-table", alone);
        assert_eq!(owners_of(actor.inode()), [actor.tgid()]);
    });
}

#[test]
fn processes_that_come_and_go_do_no_harm() {
    netns_alone("processes_that_come_and_go_do_no_harm", |alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(Sleeper::fork(alone));
                }
            });
            let inodes = BTreeSet::from([inode_of(&fd)]);
            let scans: Vec<OwnerScan> = (0..50).map(|_| owners(&inodes)).collect();
            stop.store(true, Ordering::Relaxed);
            for scan in scans {
                no_unexpected_blindness(&scan);
                assert!(scan.owners[&inode_of(&fd)].contains(&own()));
            }
        });
    });
}

#[test]
fn another_user_s_descriptors_are_reported_as_unseen() {
    let alone = alone();
    if !root_or_skip("another_user_s_descriptors_are_reported_as_unseen") {
        return;
    }
    let child = Sleeper::fork(&alone);
    let scan = thread::spawn(|| {
        become_nobody();
        owners(&BTreeSet::from([SocketInode(1)]))
    });
    let scan = scan.join().unwrap();
    assert_eq!(scan.complete, Err(Unseen::NotPermitted));
    assert!(scan.closed.contains(&child.tgid()));
}

#[test]
fn a_child_pid_namespace_sees_not_everybody() {
    if !root_or_skip("a_child_pid_namespace_sees_not_everybody") {
        return;
    }
    let said = thread::spawn(|| {
        let alone = alone();
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        Actor::play("what-is-unseen", &alone).line.clone()
    });
    assert_eq!(said.join().unwrap(), "Some(OtherPidNamespace)");
}

#[test]
fn hidden_processes_are_reported_as_unseen() {
    if !root_or_skip("hidden_processes_are_reported_as_unseen") {
        return;
    }
    let answers = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=2")).unwrap();
        let as_root = (procfs::hidepid().unwrap(), procfs::what_is_unseen().unwrap());
        become_nobody();
        (as_root, procfs::process(Tgid(1)).unwrap())
    });
    let (as_root, init_for_nobody) = answers.join().unwrap();
    assert_eq!(as_root, (procfs::HidePid::Invisible, None));
    assert_eq!(init_for_nobody, None, "hidepid=2 shows a hidden process as none");
}

#[test]
fn only_a_socket_link_is_an_inode() {
    for (target, expected) in [
        (&b"socket:[12345]"[..], Some(SocketInode(12345))),
        (b"socket:[18446744073709551615]", Some(SocketInode(u64::MAX))),
        (b"socket:[18446744073709551616]", None),
        (b"socket:[]", Some(SocketInode(0))),
        (b"socket:[1x]", None),
        (b"pipe:[1]", None),
        (b"/tmp/socket:[1]", None),
        (b"socket:[1", None),
    ] {
        assert_eq!(socket_inode(target), expected, "{}", String::from_utf8_lossy(target));
    }
}

#[test]
#[ignore = "a measurement: cargo test -- --ignored --nocapture"]
fn measure_a_scan_of_1000_processes_with_60_descriptors() {
    netns_alone("measure_a_scan_of_1000_processes_with_60_descriptors", |alone| {
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let inode = inode_of(&fd);
        let _ballast: Vec<_> = (0..60).map(|_| fd.try_clone().unwrap()).collect();
        let _children: Vec<Sleeper> = (0..1000).map(|_| Sleeper::fork(alone)).collect();
        for wanted in [inode, SocketInode(u64::MAX)] {
            let mut spans: Vec<_> = (0..11)
                .map(|_| {
                    let begun = Instant::now();
                    let scan = owners(&BTreeSet::from([wanted]));
                    println!("{} owners", scan.owners[&wanted].len());
                    begun.elapsed()
                })
                .collect();
            spans.sort_unstable();
            println!(
                "inode {wanted}: median {:?}, fastest {:?}, slowest {:?}",
                spans[5], spans[0], spans[10]
            );
        }
    });
}
