//! Who owns the socket: by BPF or from `/proc`, the same answer; and what only BPF sees.

use guard_tests::caller::{CAP_SYS_PTRACE, Caller};
use guard_tests::kernel::owners;
use guard_tests::{Finished, Portguard, Tier, Verdict, World, each_tier};

each_tier!(all_sharers_are_named, not_allowed_to_look);

/// With `--tier auto` the first look is at `/proc`, which shows nobody; once BPF is loaded,
/// the run goes on with what that shows.
#[test]
fn auto_sees_more_once_bpf_is_loaded() {
    guard_tests::world::play("owners::auto_sees_more_once_bpf_is_loaded", Tier::Ebpf, |world| {
        let port = world.port();
        let old = world.standin("").listen("127.0.0.1", port).start();
        // Within the tick of the request, only whoever the first look shows is older than it.
        old.id().ages();
        let finished = Portguard::bare(&["free", "--json", "--timeout", "15s", "--port"])
            .arg(&port.to_string())
            .matching("standin")
            .by(Caller::root_without(CAP_SYS_PTRACE))
            .run()
            .expect(0);
        assert!(old.all_gone(), "{finished}");
    });
}

/// A look that would take `/proc` long goes on with BPF once that is loaded, and what it finds is the same.
#[test]
fn a_long_look_is_finished_by_bpf() {
    guard_tests::world::play("owners::a_long_look_is_finished_by_bpf", Tier::Ebpf, |world| {
        let port = world.port();
        // 140,000 descriptors, to be read one by one: many times what it takes to load the iterator.
        let old = world.standin("--descriptors 3500 --fork-sharer 40").listen("127.0.0.1", port).start();
        let finished = Portguard::bare(&["status", "--json", "--port"])
            .arg(&port.to_string())
            .through(vec!["env".to_owned(), "PORTGUARD_LOG=debug".to_owned()])
            .run();
        assert!(finished.stderr.contains("owners were looked up by BPF"), "{finished}");
        assert_eq!(named(&finished, old.inode()), (holding(old.inode()), true), "{finished}");
    });
}

/// The owners of the listener with this inode, ascending, and whether these are all.
fn named(finished: &Finished, inode: u64) -> (Vec<i32>, bool) {
    let snapshots = finished.of("snapshot");
    let holders = snapshots.last().expect("a snapshot").holders();
    let holder = holders.iter().find(|holder| holder.inode() == Some(inode));
    let holder = holder.unwrap_or_else(|| panic!("no holder {inode}\n{finished}"));
    let mut pids: Vec<i32> = holder.owners().iter().map(|owner| owner.process().pid).collect();
    pids.sort_unstable();
    (pids, holder.visibility() == "all")
}

fn holding(inode: u64) -> Vec<i32> {
    let mut pids: Vec<i32> = owners(inode).iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

fn all_sharers_are_named(world: &World) {
    let port = world.port();
    let old = world.standin("--fork-sharer 7").listen("127.0.0.1", port).start();
    let expected = holding(old.inode());
    assert_eq!(expected.len(), 8);
    let finished = world.portguard("status", port).run();
    assert_eq!(named(&finished, old.inode()).0, expected, "{finished}");
}

/// Root without CAP_SYS_PTRACE may not look into other processes' descriptors; BPF need not ask.
fn not_allowed_to_look(world: &World) {
    let port = world.port();
    let old = world.standin("--fork-sharer 1").listen("127.0.0.1", port).start();
    let expected = holding(old.inode());
    let blind = Caller::root_without(CAP_SYS_PTRACE);
    let status = world.portguard("status", port).by(blind.clone()).run();
    if world.tier == Tier::Ebpf {
        assert_eq!(named(&status, old.inode()), (expected, true), "{status}");
        let freed = world.free(port).matching("standin").by(blind).run().expect(0);
        assert_eq!(freed.verdict(), Verdict::Free, "{freed}");
        assert!(old.all_gone(), "{freed}");
    } else {
        assert_eq!(named(&status, old.inode()), (Vec::new(), false), "{status}");
        let refused = world.free(port).matching("standin").timeout("2s").by(blind).run().expect(3);
        assert!(refused.signals().is_empty() && old.all_alive(), "{refused}");
    }
}
