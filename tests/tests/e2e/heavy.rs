//! Holders whose end takes the kernel long: deep accept queues, much memory.

use guard_tests::{World, each_tier};

each_tier!(
    deep_accept_queue,
    deep_accept_queue_killed,
    large_process,
    many_accepted_connections,
    unaccepted_on_dual_stack
);

fn deep_accept_queue(world: &World) {
    queue(world, "127.0.0.1", 2000, "exit");
}

fn deep_accept_queue_killed(world: &World) {
    queue(world, "127.0.0.1", 2000, "hang");
}

/// Connections of IPv4 clients lie in an IPv6 listener's queue.
fn unaccepted_on_dual_stack(world: &World) {
    queue(world, "::", 50, "exit");
}

fn queue(world: &World, address: &str, count: u32, on_term: &str) {
    let port = world.port();
    let old = world.standin(&format!("--backlog 4096 --on-term {on_term}")).listen(address, port).start();
    let clients =
        world.standin(&format!("--tag client --connect 127.0.0.1:{port} --hold-connections {count}")).start();
    assert_eq!(clients.ready["connections"], count);
    let finished = world.free(port).matching("--listen").drain("300ms").run().expect(0);
    assert!(world.netns.bindable(address, port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert!(clients.all_alive() && !clients.termed(), "a client is no holder\n{finished}");
}

/// Looking once took 30 s: each connection's owner was looked into by itself.
fn many_accepted_connections(world: &World) {
    let port = world.port();
    let old = world.standin("--accept").listen("127.0.0.1", port).start();
    let clients =
        world.standin(&format!("--tag client --connect 127.0.0.1:{port} --hold-connections 1500")).start();
    let finished = world.free(port).matching("--listen").timeout("10s").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert!(clients.all_alive() && !clients.termed(), "{finished}");
}

fn large_process(world: &World) {
    let port = world.port();
    let mut old = world.standin("--rss 500M --on-term hang").listen("127.0.0.1", port).start();
    let finished = world.free(port).matching("standin").drain("200ms").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert_eq!(old.child.killed_by(), Some(nix::sys::signal::Signal::SIGKILL), "{finished}");
}
