//! A toy kernel and a toy adapter: the reference model that the gate is held
//! against.
//!
//! It has processes, descriptors, sockets with bind buckets, exits that take
//! time, reused PIDs, a virtual clock, and an event layer that loses, repeats,
//! delays and reorders. It knows nothing of [`crate::conflict`] or
//! [`crate::policy`]: what is bindable and who may be ended is written down here
//! a second time, from the kernel's rules and from each process's true role.

mod bind;
mod driver;
mod kernel;

mod process;
mod view;
mod weather;

pub(super) use bind::{Bucket, bind_fails};
pub(super) use driver::{Driver, Report};
pub(super) use kernel::{Happening, Kernel};

pub(super) use process::{Birth, OnTerm, Place, Role};
pub(super) use view::{Service, Viewer};
pub(super) use weather::{Fate, Weather};

use std::time::Duration;

use super::{Budgets, Goal, Plan, Reach};
use crate::model::{BindSpec, Instant, Port, ProcessId, StartTime, Tgid, Uid};
use crate::policy::{Asker, Pattern, Rules};

/// When every toy run begins.
pub(super) const BEGIN: Instant = Instant::from_nanos(1_000_005_000_000);

/// Who asks in every toy run, and its parent.
pub(super) const GUARD: ProcessId = ProcessId { tgid: Tgid(500), start: StartTime(99_990) };
pub(super) const SHELL: ProcessId = ProcessId { tgid: Tgid(400), start: StartTime(90_000) };

/// The cgroup in which the guard's roommates live.
pub(super) const OUR_SERVICE: &str = "/system.slice/guard.service";

/// A process start time's clock tick.
pub(super) fn tick(at: Instant) -> StartTime {
    StartTime(at.as_nanos() / 10_000_000)
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

pub(super) fn port() -> Port {
    Port::new(18789).expect("not zero")
}

pub(super) fn spec(address: &str) -> BindSpec {
    BindSpec::reusable(address.parse().expect("an address"), port())
}

pub(super) fn strict(address: &str) -> BindSpec {
    BindSpec { reuse_address: false, ..spec(address) }
}

/// Finds a fixed text.
#[derive(Debug)]
pub(super) struct Contains(pub(super) &'static str);

impl Pattern for Contains {
    fn is_match(&self, text: &str) -> bool {
        text.contains(self.0)
    }

    fn source(&self) -> &str {
        self.0
    }
}

/// A plan that frees `endpoints`: polls every 5 ms, drains for 100 ms, gives up
/// after 3 s, and recognises the toy's services.
pub(super) fn plan(endpoints: Vec<BindSpec>) -> Plan {
    Plan {
        endpoints,
        goal: Goal::Free,
        rules: Rules { patterns: vec![Box::new(Contains("openclaw"))], ..Rules::default() },
        asker: Asker {
            process: GUARD,
            ancestors: vec![SHELL],
            ancestry_hidden: false,
            cgroup: Some(OUR_SERVICE.to_owned()),
            uid: Uid(0),
            may_signal_others: true,
            requested: tick(BEGIN),
        },
        budgets: Budgets { total: Some(ms(3_000)), drain: ms(100), confirm: ms(100) },
        recheck: ms(5),
        port_only: false,
        evict: false,
        reach: Reach::Owners,
    }
}
