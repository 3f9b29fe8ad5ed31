//! The kernel's bind-conflict table, row by row: what is on the port, and what a bind with
//! `SO_REUSEADDR` and one without it then meet. `bind()` and `listen()` in a fresh process are the
//! judge; every tier has to say the same, and to name the same holders. Whoever may not see an
//! owner says `unknown`, never free.
//!
//! `at_once` plays all rows together, with one portguard for all services that bind the same: a fifth of the
//! processes, for machines on which they start slowly. What it cannot show is a row that is right only beside others.

use guard_tests::caller::{Caller, NOBODY};
use guard_tests::events::{Bind, Event, Holder};
use guard_tests::world::play;
use guard_tests::{DEADLINE, Finished, Portguard, Standin, Tier, Verdict, World};

/// Who has a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// The stand-in.
    Process,
    /// Its child.
    Sharer,
    /// The socket has a file, and no process a descriptor for it.
    Nobody,
    /// The socket has no file.
    NoFile,
}
use Who::{NoFile, Nobody, Process, Sharer};

/// The sockets that the table shows on the port, and that may be in the way.
type Holders = &'static [(&'static str, Who)];

/// A row: one stand-in on the port.
struct Row {
    /// Its arguments; `PORT` is the port.
    standin: &'static str,
    /// What it binds; nothing when the arguments say enough.
    on: &'static str,
    /// What the service binds.
    binds: &'static str,
    v6only: bool,
    /// A service with `SO_REUSEADDR` can bind and listen.
    reusing: bool,
    /// One without it can.
    strict: bool,
    /// What is shown to a service with `SO_REUSEADDR`, and to one without.
    holders: [Holders; 2],
}

const HERE: &str = "127.0.0.1";

const fn row(standin: &'static str, free: [bool; 2], holder: Holders) -> Row {
    let [reusing, strict] = free;
    Row { standin, on: HERE, binds: HERE, v6only: false, reusing, strict, holders: [holder, holder] }
}

/// A listener on `on` and a service on `binds`.
const fn listener(on: &'static str, binds: &'static str) -> Row {
    Row { on, binds, ..row("", IN_USE, &[("LISTEN", Process)]) }
}

/// A listener that the service does not meet.
const fn stranger(on: &'static str, binds: &'static str) -> Row {
    Row { on, binds, ..row("", FREE, &[]) }
}

/// A client on the port, which the kernel chose for it.
const fn client(arguments: &'static str, holder: Holders) -> Row {
    Row { on: "", ..row(arguments, IN_USE, holder) }
}

const FREE: [bool; 2] = [true, true];
const IN_USE: [bool; 2] = [false, false];
/// Free for a service with `SO_REUSEADDR`.
const SHARED: [bool; 2] = [true, false];

/// Plays the `check` of the module, by whoever sees everything and by whoever does not.
macro_rules! in_each_tier {
    () => {
        fn anybody(world: &World) {
            check(world, &Caller::default());
        }

        fn nobody(world: &World) {
            check(world, &Caller::user(NOBODY));
        }

        #[test]
        fn ebpf() {
            play(module_path!(), Tier::Ebpf, anybody);
        }

        #[test]
        fn netlink() {
            play(module_path!(), Tier::Netlink, anybody);
        }

        #[test]
        fn poll() {
            play(module_path!(), Tier::Poll, anybody);
        }

        /// An ordinary user has no BPF.
        #[test]
        fn unprivileged_netlink() {
            play(concat!(module_path!(), "::unprivileged"), Tier::Netlink, nobody);
        }

        #[test]
        fn unprivileged_poll() {
            play(concat!(module_path!(), "::unprivileged"), Tier::Poll, nobody);
        }
    };
}

macro_rules! table {
    ($(fn $name:ident() = $row:expr;)+) => {
        const TABLE: &[(&str, Row)] = &[$((stringify!($name), $row)),+];

        $(
        mod $name {
            use super::*;

            const ROW: Row = $row;

            fn check(world: &World, caller: &Caller) {
                ROW.check(world, caller);
            }

            in_each_tier!();
        }
        )+
    };
}

table! {
    fn listener_same_address() = listener(HERE, HERE);
    fn listener_on_wildcard() = listener("0.0.0.0", HERE);
    fn listener_against_wildcard() = listener(HERE, "0.0.0.0");
    fn listener_against_dual_stack() = listener(HERE, "::");
    fn listener_on_dual_stack_against_v4() = listener("::", HERE);
    fn listener_on_dual_stack_against_v6() = listener("::", "::1");
    fn listener_other_loopback() = stranger(HERE, "127.0.0.2");
    fn listener_v4_against_v6() = stranger(HERE, "::1");
    fn listener_v4_against_v6only() = Row { v6only: true, ..stranger(HERE, "::") };
    fn listener_v6only_against_v4() = Row { standin: "--v6only", ..stranger("::", HERE) };
    fn listener_v6_against_v6only() = Row { v6only: true, ..listener("::1", "::") };
    fn listener_reuseport() = Row { standin: "--reuseport", ..listener(HERE, HERE) };
    fn listener_strict() = Row { standin: "--strict", ..listener(HERE, HERE) };
    fn listener_strict_reuseport() = Row { standin: "--strict --reuseport", ..listener(HERE, HERE) };
    fn listener_inherited() = row("--fork-sharer 1 --orphan", IN_USE, &[("LISTEN", Sharer)]);
    fn listener_in_flight() = row("--inflight", IN_USE, &[("LISTEN", Nobody)]);
    fn listener_in_io_uring() = row("--io-uring", IN_USE, &[("LISTEN", Nobody)]);

    fn established_of_reuse() = row("--close-listeners --leave established", SHARED, &[("ESTABLISHED", Process)]);
    fn established_of_strict() =
        row("--strict --close-listeners --leave established", IN_USE, &[("ESTABLISHED", Process)]);
    fn close_wait_of_reuse() = row("--close-listeners --leave close-wait", SHARED, &[("CLOSE_WAIT", Process)]);
    fn close_wait_of_strict() =
        row("--strict --close-listeners --leave close-wait", IN_USE, &[("CLOSE_WAIT", Process)]);
    fn fin_wait_of_reuse() = row("--close-listeners --leave fin-wait", SHARED, &[("FIN_WAIT2", Process)]);
    fn fin_wait_of_strict() = row("--strict --close-listeners --leave fin-wait", IN_USE, &[("FIN_WAIT2", Process)]);
    fn orphan_of_reuse() = row("--close-listeners --leave orphan", SHARED, &[("FIN_WAIT2", NoFile)]);
    fn orphan_of_strict() = row("--strict --close-listeners --leave orphan", IN_USE, &[("FIN_WAIT2", NoFile)]);
    fn time_wait_of_reuse() = row("--close-listeners --leave time-wait", SHARED, &[("TIME_WAIT", NoFile)]);
    fn time_wait_of_strict() = row("--strict --close-listeners --leave time-wait", IN_USE, &[("TIME_WAIT", NoFile)]);
    fn time_wait_of_dual_stack() =
        Row { on: "::", ..row("--close-listeners --leave time-wait", SHARED, &[("TIME_WAIT", NoFile)]) };

    fn client_source_port() = client("--client-from PORT", &[("ESTABLISHED", Process)]);
    fn client_source_port_in_time_wait() = client("--client-from PORT --leave time-wait", &[("TIME_WAIT", NoFile)]);

    // The flag of a bound socket is learned, where it may be seen.
    fn bound_only_reuse() =
        Row { holders: [&[], BOUND], ..row("--bind-only", SHARED, BOUND) };
    fn bound_only_strict() = row("--bind-only --strict", IN_USE, BOUND);
}

const BOUND: Holders = &[("BOUND_INACTIVE", Process)];

impl Row {
    fn check(&self, world: &World, caller: &Caller) {
        if !self.is_possible() {
            return world.skip("this kernel has no io_uring, or kernel.io_uring_disabled is set");
        }
        let port = world.port();
        let there = self.take_the_port(world, port);
        for strict in [false, true] {
            let free = self.is_free(strict);
            assert_eq!(self.judge(world, port, strict), free, "the kernel itself, strict: {strict}");
            let finished = self.service(world.portguard("status", port), strict).by(caller.clone()).run();
            let snapshot = last(&finished);
            assert_eq!(finished.verdict(), snapshot.endpoint(port).verdict(), "{finished}");
            self.compare(snapshot, port, &there, strict, caller.is_root());
            let gate = self.service(world.portguard("gate", port), strict).timeout("250ms");
            gate.by(caller.clone()).run().expect(i32::from(!free));
            assert_eq!(self.judge(world, port, strict), free, "the kernel itself, later, strict: {strict}");
        }
    }

    fn is_free(&self, strict: bool) -> bool {
        if strict { self.strict } else { self.reusing }
    }

    fn is_possible(&self) -> bool {
        !self.standin.contains("--io-uring") || guard_tests::kernel::has_io_uring()
    }

    fn take_the_port(&self, world: &World, port: u16) -> Standin {
        let mut there = world.standin(&self.standin.replace("PORT", &port.to_string()));
        if !self.on.is_empty() {
            there = there.listen(self.on, port);
        }
        let mut there = there.start();
        if self.standin.contains("--orphan") {
            there.child.wait(DEADLINE);
        }
        there
    }

    /// The truth: a fresh process binds and listens as the service would.
    fn judge(&self, world: &World, port: u16, strict: bool) -> bool {
        let mut service = world.standin("--exit-when-ready").listen(self.binds, port);
        if strict {
            service = service.with("--strict");
        }
        if self.v6only {
            service = service.with("--v6only");
        }
        service.binds()
    }

    fn service(&self, mut portguard: Portguard, strict: bool) -> Portguard {
        portguard = portguard.address(self.binds);
        if strict {
            portguard = portguard.arg("--strict-bind");
        }
        if self.v6only {
            portguard = portguard.arg("--v6only");
        }
        portguard
    }

    fn compare(&self, snapshot: &Event, port: u16, there: &Standin, strict: bool, sees_all: bool) {
        let told = || format!("{}, port {port}, strict: {strict}\n{snapshot}", self.standin);
        let free = self.is_free(strict);
        let expected = self.holders[usize::from(strict)];
        let has_file = expected.iter().any(|(_, who)| *who != NoFile);
        let listed = shown_by_this_kernel(expected);
        let verdict = match free {
            true => Verdict::Free,
            // Whoever has it may not be seen, so nobody knows whether a signal would help.
            false if !sees_all && has_file && !listed.is_empty() => Verdict::Unknown,
            false => Verdict::Busy,
        };
        let endpoint = snapshot.endpoint(port);
        assert_eq!(endpoint.verdict(), verdict, "{}", told());
        for (kind, bind) in endpoint.binds().iter().enumerate() {
            let foretold = self.foretells(bind, kind == 1);
            // The flags of a connection, and what may not be seen, leave the kind that was not probed open.
            let open = bind.expected == "unclear" && (kind == 1) != strict;
            assert!(foretold || open, "{bind:?}, {}", told());
        }
        if !sees_all {
            return;
        }
        let holders = snapshot.holders();
        let here = holders.iter().filter(|holder| holder.port() == port);
        let mut shown: Vec<(&str, Who)> =
            here.map(|holder| (holder.state(), who(holder, there, snapshot))).collect();
        shown.sort_unstable();
        assert_eq!(shown, listed, "{}", told());
    }

    fn foretells(&self, bind: &Bind, strict: bool) -> bool {
        bind.expected == if self.is_free(strict) { "success" } else { "failure" } || bound_only_is_unseen()
    }
}

fn last(finished: &Finished) -> &Event {
    finished.of("snapshot").pop().unwrap_or_else(|| panic!("no snapshot\n{finished}"))
}

fn who(holder: &Holder<'_>, there: &Standin, snapshot: &Event) -> Who {
    let owners: Vec<_> = holder.owners().iter().map(|owner| owner.process()).collect();
    match owners[..] {
        [] if holder.kernel_held() => Nobody,
        [] if holder.visibility() == "none" => NoFile,
        [owner] if owner == there.id() => Process,
        [owner] if there.sharers == [owner] => Sharer,
        _ => panic!("whose is it?\n{snapshot}"),
    }
}

/// The whole table at a time.
mod at_once {
    use std::collections::BTreeMap;

    use super::*;

    /// A row on its port.
    type Placed = (&'static str, &'static Row, u16, Standin);

    in_each_tier!();

    fn check(world: &World, caller: &Caller) {
        let possible = TABLE.iter().filter(|(_, row)| row.is_possible());
        let placed: Vec<Placed> = possible
            .map(|(name, row)| {
                let port = world.port();
                (*name, row, port, row.take_the_port(world, port))
            })
            .collect();
        for strict in [false, true] {
            // A port in use keeps portguard from probing the others without SO_REUSEADDR, so these are asked about apart.
            let mut alike: BTreeMap<_, Vec<&Placed>> = BTreeMap::new();
            for one in &placed {
                let (_, row, ..) = one;
                // Nor is a socket probed for beside others that this kernel does not list.
                let unseen = row.standin.contains("--bind-only") && bound_only_is_unseen();
                alike.entry((row.binds, row.v6only, unseen, row.is_free(strict))).or_default().push(one);
            }
            for (&(.., free), placed) in &alike {
                together(world, caller, placed, strict, free);
            }
        }
    }

    /// Rows whose services bind the same, and all can or all cannot.
    fn together(world: &World, caller: &Caller, placed: &[&Placed], strict: bool, free: bool) {
        let truth = |(name, row, port, _): &&Placed| {
            let address = row.binds.parse().expect("an IP address");
            let judged =
                world.netns.serviceable(address, *port, !strict, row.v6only).expect("bind and listen");
            assert_eq!(judged, free, "the kernel itself, {name}, strict: {strict}");
        };
        placed.iter().for_each(truth);
        let finished = ask(world, caller, "status", placed, strict).run();
        for (_, row, port, there) in placed {
            row.compare(last(&finished), *port, there, strict, caller.is_root());
        }
        // A gate that stays shut would say nothing of each: one port in use is enough for that.
        if free {
            ask(world, caller, "gate", placed, strict).run().expect(0);
        }
        placed.iter().for_each(truth);
    }

    fn ask(world: &World, caller: &Caller, command: &str, about: &[&Placed], strict: bool) -> Portguard {
        let (first, rest) = about.split_first().expect("a row");
        let (_, row, port, _) = first;
        let asked = row.service(world.portguard(command, *port), strict).by(caller.clone());
        rest.iter().fold(asked, |asked, (_, _, port, _)| asked.arg("--port").arg(&port.to_string()))
    }
}

/// Bound-only sockets are listed since Linux 6.8.
fn bound_only_is_unseen() -> bool {
    !guard_tests::kernel::at_least(6, 8)
}

fn shown_by_this_kernel(holders: Holders) -> Vec<(&'static str, Who)> {
    let unseen = bound_only_is_unseen();
    holders.iter().copied().filter(|(state, _)| !(unseen && *state == "BOUND_INACTIVE")).collect()
}
