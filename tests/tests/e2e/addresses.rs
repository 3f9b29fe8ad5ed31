//! Several addresses, both families, dual-stack.

use guard_tests::{DEADLINE, World, each_tier};

each_tier!(
    both_families_one_process,
    both_families_two_processes,
    one_family_lags_behind,
    dual_stack,
    dual_stack_against_v4,
    v6only_leaves_v4_alone,
    other_loopback_address_is_no_holder,
    wildcard_meets_one_address,
);

fn both_families_one_process(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("127.0.0.1", port).listen("::1", port).start();
    let finished = world.free(port).address("127.0.0.1").address("::1").matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port) && world.netns.bindable("::1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(old.id()), ["SIGTERM"], "one process, one signal\n{finished}");
}

fn both_families_two_processes(world: &World) {
    let port = world.port();
    let v4 = world.standin("").listen("127.0.0.1", port).start();
    let v6 = world.standin("--on-term hang").listen("::1", port).start();
    let finished = world
        .free(port)
        .address("127.0.0.1")
        .address("::1")
        .matching("standin")
        .drain("300ms")
        .run()
        .expect(0);
    assert!(world.netns.bindable("127.0.0.1", port) && world.netns.bindable("::1", port), "{finished}");
    assert!(v4.all_gone() && v6.all_gone(), "{finished}");
}

/// A gateway may let go of 127.0.0.1 seconds before ::1: the gate waits for both.
fn one_family_lags_behind(world: &World) {
    let port = world.port();
    let v4 = world.standin("").listen("127.0.0.1", port).start();
    let v6 = world.standin("--on-term delay=600ms").listen("::1", port).start();
    let finished =
        world.free(port).address("127.0.0.1").address("::1").matching("standin").drain("10s").run().expect(0);
    assert!(world.netns.bindable("::1", port), "{finished}");
    assert!(v4.all_gone() && v6.all_gone(), "{finished}");
    assert_eq!(finished.signals_to(v6.id()), ["SIGTERM"], "{finished}");
}

fn dual_stack(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("::", port).start();
    let finished = world.free(port).matching("standin").run().expect(0);
    assert!(world.netns.bindable("::", port) && world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

fn dual_stack_against_v4(world: &World) {
    let port = world.port();
    let old = world.standin("").listen("::", port).start();
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert!(world.netns.bindable("127.0.0.1", port), "{finished}");
    assert!(old.all_gone(), "{finished}");
}

fn v6only_leaves_v4_alone(world: &World) {
    let port = world.port();
    let bystander = world.standin("--v6only").listen("::", port).start();
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert!(bystander.all_alive() && !bystander.termed(), "{finished}");
}

fn other_loopback_address_is_no_holder(world: &World) {
    let port = world.port();
    let bystander = world.standin("").listen("127.0.0.2", port).start();
    let old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.free(port).address("127.0.0.1").matching("standin").run().expect(0);
    assert!(old.all_gone(), "{finished}");
    assert!(bystander.all_alive() && !bystander.termed(), "{finished}");
}

fn wildcard_meets_one_address(world: &World) {
    let port = world.port();
    let mut old = world.standin("").listen("127.0.0.1", port).start();
    let finished = world.free(port).address("0.0.0.0").matching("standin").run().expect(0);
    assert!(world.netns.bindable("0.0.0.0", port), "{finished}");
    old.child.wait(DEADLINE);
}
