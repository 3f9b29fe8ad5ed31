//! The stand-ins are what they claim: the other tests lean on that.

use guard_tests::kernel::owners;
use guard_tests::{DEADLINE, Proc, Tier, World, wait_until};
use nix::sys::signal::Signal;

macro_rules! roles {
    ($($role:ident),+ $(,)?) => { $(
        #[test]
        fn $role() {
            guard_tests::world::play(concat!("roles::", stringify!($role)), Tier::Poll, |world| behave::$role(world));
        }
    )+ };
}
roles!(
    listener,
    loser,
    orphan,
    in_flight,
    time_wait,
    bound_only,
    client,
    dead_leader,
    delay,
    hang,
    close_hang,
    successor,
    reuseport,
    command,
    nobody_outlives_the_test,
);

mod behave {
    use super::*;

    pub(super) fn listener(world: &World) {
        let port = world.port();
        let mut standin = world.standin("").listen("::", port).start();
        assert_eq!(owners(standin.inode()), [standin.id()]);
        assert!(!world.netns.bindable("127.0.0.1", port) && !world.netns.bindable("::1", port));
        standin.child.signal(Signal::SIGTERM);
        assert!(standin.child.wait(DEADLINE).success());
        assert!(world.netns.bindable("::", port));
    }

    pub(super) fn loser(world: &World) {
        let port = world.port();
        let _first = world.standin("").listen("127.0.0.1", port).start();
        let line = world.standin("--bind-attempts 3").listen("127.0.0.1", port).command_line();
        let mut command = std::process::Command::new(&line[0]);
        command.args(&line[1..]);
        let mut second = guard_tests::child::Child::start(command, "the loser");
        assert_eq!(second.wait(DEADLINE).code(), Some(98));
        assert!(second.stdout.ended_within(DEADLINE));
        assert_eq!(second.stdout.so_far().len(), 3, "{}", second.said());
    }

    pub(super) fn orphan(world: &World) {
        let port = world.port();
        let mut standin = world.standin("--fork-sharer 2 --orphan").listen("127.0.0.1", port).start();
        assert!(standin.child.wait(DEADLINE).success());
        assert!(wait_until(DEADLINE, || owners(standin.inode()) == standin.sharers));
        assert_eq!(standin.sharers.len(), 2);
    }

    pub(super) fn in_flight(world: &World) {
        let port = world.port();
        let standin = world.standin("--inflight").listen("127.0.0.1", port).start();
        assert!(owners(standin.inode()).is_empty());
        assert!(!world.netns.bindable("127.0.0.1", port));
        drop(standin);
        assert!(wait_until(DEADLINE, || world.netns.bindable("127.0.0.1", port)));
    }

    pub(super) fn time_wait(world: &World) {
        for (flag, reusable) in [("", true), ("--strict", false)] {
            let port = world.port();
            let mut standin = world
                .standin(&format!("--time-wait --exit-when-ready {flag}"))
                .listen("127.0.0.1", port)
                .start();
            standin.child.wait(DEADLINE);
            assert_eq!(world.netns.bindable("127.0.0.1", port), reusable);
            assert!(!world.netns.strictly_bindable("127.0.0.1", port));
        }
    }

    pub(super) fn bound_only(world: &World) {
        for (flag, reusable) in [("", true), ("--strict", false)] {
            let port = world.port();
            let _standin = world.standin(&format!("--bind-only {flag}")).listen("127.0.0.1", port).start();
            assert_eq!(world.netns.bindable("127.0.0.1", port), reusable);
            assert!(!world.netns.strictly_bindable("127.0.0.1", port));
        }
    }

    pub(super) fn client(world: &World) {
        let port = world.port();
        let _standin = world.standin(&format!("--client-from {port}")).start();
        assert!(!world.netns.bindable("127.0.0.1", port));
    }

    pub(super) fn dead_leader(world: &World) {
        let port = world.port();
        let mut standin = world.standin("--threads 1 --leader-exits").listen("127.0.0.1", port).start();
        assert!(
            wait_until(DEADLINE, || owners(standin.inode()).is_empty()),
            "its /proc/PID/fd becomes empty"
        );
        assert!(standin.child.alive() && !world.netns.bindable("127.0.0.1", port));
        standin.child.signal(Signal::SIGTERM);
        assert_eq!(standin.child.killed_by(), Some(Signal::SIGTERM));
        assert!(world.netns.bindable("127.0.0.1", port));
    }

    pub(super) fn delay(world: &World) {
        let port = world.port();
        let mut standin = world.standin("--on-term delay=100ms").listen("127.0.0.1", port).start();
        standin.child.signal(Signal::SIGTERM);
        assert!(standin.termed_within(DEADLINE));
        assert!(standin.child.wait(DEADLINE).success());
    }

    pub(super) fn hang(world: &World) {
        let port = world.port();
        let mut standin = world.standin("--on-term hang").listen("127.0.0.1", port).start();
        standin.child.signal(Signal::SIGTERM);
        assert!(standin.termed_within(DEADLINE));
        assert!(standin.child.alive() && !world.netns.bindable("127.0.0.1", port));
        standin.child.signal(Signal::SIGKILL);
        assert_eq!(standin.child.killed_by(), Some(Signal::SIGKILL));
    }

    pub(super) fn close_hang(world: &World) {
        let port = world.port();
        let standin = world.standin("--on-term close-hang").listen("127.0.0.1", port).start();
        standin.child.signal(Signal::SIGTERM);
        assert!(wait_until(DEADLINE, || world.netns.bindable("127.0.0.1", port)));
        assert!(standin.child.alive());
    }

    pub(super) fn successor(world: &World) {
        let port = world.port();
        let mut standin = world.standin("--on-term successor").listen("127.0.0.1", port).start();
        standin.child.signal(Signal::SIGTERM);
        let successor = standin.line("ready", |line| line["tag"] == "successor");
        assert_ne!(successor["pid"], standin.ready["pid"]);
        assert!(standin.child.wait(DEADLINE).success());
        assert!(!world.netns.bindable("127.0.0.1", port));
    }

    pub(super) fn reuseport(world: &World) {
        let port = world.port();
        let _group: Vec<_> =
            (0..3).map(|_| world.standin("--reuseport").listen("127.0.0.1", port).start()).collect();
        assert!(!world.netns.bindable("127.0.0.1", port));
    }

    pub(super) fn command(world: &World) {
        let standin = world.standin("--threads 1").then_run(["sh", "-c", "echo out; exit 4"]).start();
        let ended = standin.line("command_exited", |_| true);
        assert_eq!((ended["code"].as_i64(), ended["stdout"].as_str()), (Some(4), Some("out\n")));
    }

    pub(super) fn nobody_outlives_the_test(world: &World) {
        let port = world.port();
        let inner = std::thread::spawn(|| {
            let netns = guard_tests::netns::Netns::enter().expect("a namespace");
            let port = netns.free_port();
            let mut orphans = guard_tests::standin::Plan::new(["--fork-sharer", "2", "--orphan"])
                .with("--sharer-on-term ignore")
                .listen("127.0.0.1", port)
                .start();
            orphans.child.wait(DEADLINE);
            assert!(orphans.sharers.iter().all(Proc::alive));
            orphans.sharers
        })
        .join()
        .expect("the inner world");
        assert!(world.netns.bindable("127.0.0.1", port));
        assert!(inner.iter().all(|sharer| sharer.gone_within(DEADLINE)));
    }
}
