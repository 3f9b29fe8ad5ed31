use std::collections::VecDeque;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Barrier;
use std::thread;

use guard_core::model::StartTime;

use super::*;
use crate::kernel::sandbox::{REUSE, Sleeper, become_nobody, inode_of, listening, netns, netns_alone, skip};

const SOCKET: SocketInode = SocketInode(7);

fn own() -> ProcessId {
    let tgid = Tgid(std::process::id());
    ProcessId { tgid, start: procfs::start_time(tgid).unwrap().unwrap() }
}

fn has(process: ProcessId) -> Descriptor {
    Descriptor { inode: SOCKET, process, fd: 5, of_leader: true }
}

/// What is made of these passes; the last one is repeated for ever.
fn made_of(passes: &[&[Descriptor]]) -> (Ownership, usize) {
    let mut left: VecDeque<_> = passes.iter().collect();
    let mut asked = 0;
    let pass = || {
        asked += 1;
        let now = if left.len() > 1 { left.pop_front() } else { left.front().copied() };
        Ok(now.map(|found| found.to_vec()).unwrap_or_default())
    };
    let ownership = by_iterator(pass, &mut Evidence::default(), |_| false).unwrap();
    (ownership, asked)
}

fn owners(ownership: &Ownership) -> &[ProcessId] {
    ownership.owners.get(&SOCKET).map_or(&[], Vec::as_slice)
}

#[test]
fn an_owner_is_confirmed_by_a_second_pass() {
    let (ownership, asked) = made_of(&[&[has(own())]]);
    assert_eq!((owners(&ownership), asked), (&[own()][..], 2));
    assert_eq!(ownership.unseen, None);
    assert_eq!(ownership.descriptors[&SOCKET], (own().tgid, 5));
}

/// What is made of this, found in every pass, when it is only shown; and after how many passes.
fn shown(inodes: &[SocketInode], found: &[Descriptor]) -> (Ownership, usize) {
    let (inodes, mut asked) = (BTreeSet::from_iter(inodes.iter().copied()), 0);
    let pass = || {
        asked += 1;
        Ok(found.to_vec())
    };
    let enough = |found: &[Descriptor]| all_have_still(&inodes, found);
    (by_iterator(pass, &mut Evidence::default(), enough).unwrap(), asked)
}

#[test]
fn an_owner_that_is_only_shown_is_asked_itself_whether_it_is_one_still() {
    netns("an_owner_that_is_only_shown_is_asked_itself_whether_it_is_one_still", || {
        let (socket, _) = listening("127.0.0.1", None, REUSE);
        let (inode, fd) = (inode_of(&socket), socket.as_raw_fd());
        let descriptor = Descriptor { inode, process: own(), fd, of_leader: true };
        let (ownership, asked) = shown(&[inode], &[descriptor]);
        assert_eq!((&ownership.owners[&inode][..], asked), (&[own()][..], 1));
        assert_eq!((ownership.descriptors[&inode], ownership.unseen), ((own().tgid, fd), None));

        let twice = |inodes: &[SocketInode], found: &[Descriptor]| assert_eq!(shown(inodes, found).1, 2);
        // Nobody has the other one: it may have been passed on behind the walk.
        twice(&[inode, SOCKET], &[descriptor]);
        twice(&[inode], &[]);
        // Closed, or another file has the number by now.
        let other = std::fs::File::open("/dev/null").unwrap();
        for fd in [RawFd::MAX, other.as_raw_fd()] {
            twice(&[inode], &[Descriptor { fd, ..descriptor }]);
        }
        twice(&[inode], &[descriptor, Descriptor { fd: RawFd::MAX, ..descriptor }]);
        // As many as would take longer than another walk.
        twice(&[inode], &vec![descriptor; FEW + 1]);
        // In a table that is not the leader's.
        twice(&[inode], &[Descriptor { of_leader: false, ..descriptor }]);
        // The number is another process's by now.
        let former = ProcessId { start: StartTime(own().start.0 - 1), ..own() };
        twice(&[inode], &[Descriptor { process: former, ..descriptor }]);
    });
}

#[test]
fn nobody_is_believed_after_two_passes() {
    let (ownership, asked) = made_of(&[&[]]);
    assert_eq!((owners(&ownership), asked, ownership.unseen.clone()), (&[][..], 2, None));
    // It was passed on behind the walk.
    let (ownership, asked) = made_of(&[&[], &[has(own())]]);
    assert_eq!((owners(&ownership), asked, ownership.unseen.clone()), (&[own()][..], 3, None));
}

/// A child that closes the inherited socket when it starts another program is
/// not taken for an owner, whatever program that is.
#[test]
fn who_has_let_go_when_the_evidence_was_read_is_no_owner() {
    let (ownership, _) = made_of(&[&[has(own())], &[]]);
    assert_eq!((owners(&ownership), ownership.unseen.clone()), (&[][..], None));
}

/// The evidence would be about a bystander.
#[test]
fn a_number_given_to_another_process_is_not_an_owner() {
    let former = ProcessId { start: StartTime(own().start.0 - 1), ..own() };
    let (ownership, _) = made_of(&[&[has(former)], &[]]);
    assert_eq!((owners(&ownership), ownership.unseen.clone()), (&[][..], None));
    let (ownership, _) = made_of(&[&[has(former)]]);
    assert_eq!(owners(&ownership), []);
    assert!(matches!(ownership.unseen, Some(Unseen::Failed(_))), "{:?}", ownership.unseen);
}

#[test]
fn an_owner_of_which_proc_shows_nothing_is_never_nobody() {
    let hidden = ProcessId { tgid: Tgid(u32::MAX >> 1), start: StartTime(1) };
    let (ownership, _) = made_of(&[&[has(hidden)]]);
    assert_eq!(owners(&ownership), []);
    assert!(ownership.unseen.is_some());
    let (ownership, _) = made_of(&[&[has(hidden), has(own())]]);
    assert_eq!(owners(&ownership), [own()]);
    assert!(ownership.unseen.is_some());
}

#[test]
fn those_who_come_and_go_too_fast_end_the_asking() {
    let mut number = 0;
    let pass = || {
        number += 1;
        Ok(vec![has(own()), has(ProcessId { tgid: Tgid(u32::MAX >> 1), start: StartTime(number) })])
    };
    let ownership = by_iterator(pass, &mut Evidence::default(), |_| false).unwrap();
    assert_eq!(owners(&ownership), [own()]);
    assert!(ownership.unseen.is_some());
    assert_eq!(number, u64::from(PASSES));
}

/// Whoever looks for something is told that others' files are closed to him.
#[test]
fn nobodys_files_are_looked_at_for_no_sockets() {
    const NAME: &str = "nobodys_files_are_looked_at_for_no_sockets";
    netns(NAME, || {
        become_nobody();
        let seen = |inodes: BTreeSet<SocketInode>| {
            OwnerSource::default().owners(&inodes, &mut Evidence::default(), Care::Acting)
        };
        assert!(seen(BTreeSet::from([SOCKET])).unseen.is_some());
        let ownership = seen(BTreeSet::new());
        assert!(ownership.owners.is_empty());
        assert_eq!(ownership.unseen, None);
    });
}

#[test]
fn both_sources_name_the_same_owners() {
    const NAME: &str = "both_sources_name_the_same_owners";
    netns_alone(NAME, |alone| {
        let source = OwnerSource::default();
        match OwnerLookup::load() {
            Ok(lookup) => source.hand_over(lookup),
            Err(error) if error.is_a_fault() => {
                panic!("{error}")
            }
            Err(error) => return skip(NAME, &error.to_string()),
        }
        let (fd, _) = listening("127.0.0.1", None, REUSE);
        let (other, _) = listening("127.0.0.1", None, REUSE);
        let inodes = BTreeSet::from([inode_of(&fd), inode_of(&other)]);
        let children: Vec<Sleeper> = (0..3).map(|_| Sleeper::fork(alone)).collect();
        drop(other);
        let (mut by_bpf, mut by_proc) = (Evidence::default(), Evidence::default());
        let found = source.owners(&inodes, &mut by_bpf, Care::Acting);
        assert!(source.is_loaded());
        let expected = through_proc(&inodes, &mut by_proc, &|| false).unwrap();
        assert_eq!(found.owners, expected.owners);
        let shown = source.owners(&inodes, &mut Evidence::default(), Care::Showing);
        assert_eq!(
            (shown.owners, shown.descriptors, shown.unseen),
            (expected.owners, found.descriptors, found.unseen.clone())
        );
        assert_eq!(found.owners[&inode_of(&fd)].len(), 4);
        // Nobody is out of its sight, not even where init is closed to /proc.
        assert_eq!(found.unseen, None);
        let identities = |evidence: &Evidence| {
            evidence.processes.iter().map(|(&tgid, process)| (tgid, process.id)).collect::<Vec<_>>()
        };
        assert_eq!(identities(&by_bpf), identities(&by_proc));
        drop(children);
    });
}

#[test]
fn an_iterator_that_is_given_up_does_not_take_a_newer_one_with_it() {
    const NAME: &str = "an_iterator_that_is_given_up_does_not_take_a_newer_one_with_it";
    let source = OwnerSource::default();
    let mut loaded = Vec::new();
    for _ in 0..2 {
        match OwnerLookup::load() {
            Ok(lookup) => source.hand_over(lookup),
            Err(error) if error.is_a_fault() => panic!("{error}"),
            Err(error) => return skip(NAME, &error.to_string()),
        }
        loaded.extend(locked(&source.0.loaded).clone());
    }
    let [older, newer] = &loaded[..] else { panic!("{loaded:?}") };
    source.give_up(older);
    assert!(source.is_loaded());
    source.give_up(newer);
    assert!(!source.is_loaded() && locked(&source.0.loaded).is_none());
}

/// A source whose looks wait so long, and the sockets of a listener of this process.
fn patient(patience: Duration) -> (OwnerSource, OwnedFd, BTreeSet<SocketInode>) {
    let (fd, _) = listening("127.0.0.1", None, REUSE);
    let inodes = BTreeSet::from([inode_of(&fd)]);
    (OwnerSource(Arc::new(Shared { patience, ..Shared::default() })), fd, inodes)
}

/// How often the iterator was asked, and how often `/proc`.
fn asked(source: &OwnerSource) -> (usize, usize) {
    (source.passes(), source.0.walks.load(Ordering::Relaxed))
}

/// An iterator that looks wait for.
fn awaited(source: &OwnerSource) -> Expected {
    let expected = source.expect();
    assert!(!source.is_awaited());
    source.wait_for_expected();
    assert!(source.is_awaited());
    expected
}

/// Longer than a test may take.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Among 2,000 processes, on one processor, the look read /proc and held up the thread that was loading something better.
#[test]
fn a_look_waits_for_an_expected_iterator() {
    const NAME: &str = "a_look_waits_for_an_expected_iterator";
    netns_alone(NAME, |_| {
        let (source, _listener, inodes) = patient(FOR_EVER);
        let expected = awaited(&source);
        let begun = Barrier::new(2);
        let found = thread::scope(|scope| {
            let look = scope.spawn(|| {
                begun.wait();
                source.owners(&inodes, &mut Evidence::default(), Care::Acting)
            });
            begun.wait();
            match OwnerLookup::load() {
                Ok(lookup) => source.hand_over(lookup),
                Err(error) if error.is_a_fault() => panic!("{error}"),
                Err(error) => skip(NAME, &error.to_string()),
            }
            drop(expected);
            look.join().unwrap()
        });
        assert_eq!(found.owners.into_values().flatten().collect::<Vec<_>>(), [own()]);
        if source.is_loaded() {
            assert_eq!(asked(&source), (2, 0), "the second pass confirms the first");
        }
    });
}

#[test]
fn a_look_goes_to_proc_once_the_expected_iterator_will_not_come() {
    netns_alone("a_look_goes_to_proc_once_the_expected_iterator_will_not_come", |_| {
        let (source, _listener, inodes) = patient(FOR_EVER);
        let expected = awaited(&source);
        let begun = Barrier::new(2);
        let found = thread::scope(|scope| {
            let look = scope.spawn(|| {
                begun.wait();
                source.owners(&inodes, &mut Evidence::default(), Care::Acting)
            });
            begun.wait();
            assert_eq!(asked(&source), (0, 0));
            // As at the end of a thread that breaks down.
            drop(expected);
            look.join().unwrap()
        });
        assert_eq!(found.owners.into_values().flatten().collect::<Vec<_>>(), [own()]);
        assert_eq!(asked(&source), (0, 1));
    });
}

#[test]
fn an_expected_iterator_is_waited_for_once_and_not_for_ever() {
    netns_alone("an_expected_iterator_is_waited_for_once_and_not_for_ever", |_| {
        let (source, _listener, inodes) = patient(Duration::from_millis(1));
        let _never_comes = awaited(&source);
        for walks in 1..=2 {
            let found = source.owners(&inodes, &mut Evidence::default(), Care::Acting);
            assert_eq!(found.owners.into_values().flatten().collect::<Vec<_>>(), [own()]);
            assert_eq!(asked(&source), (0, walks));
            assert!(!source.is_awaited(), "the next look does not wait again");
        }
    });
}

#[test]
fn a_walk_through_proc_is_left_for_an_expected_iterator() {
    netns_alone("a_walk_through_proc_is_left_for_an_expected_iterator", |_| {
        let (source, _listener, inodes) = patient(FOR_EVER);
        let better_way = || source.is_loaded() || source.is_awaited();
        let walked = || through_proc(&inodes, &mut Evidence::default(), &better_way).is_some();
        assert!(walked());
        let expected = awaited(&source);
        assert!(!walked());
        drop(expected);
        assert!(walked());
        source.wait_for_expected();
        assert!(!source.is_awaited(), "none is expected");
    });
}
