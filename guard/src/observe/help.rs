//! A look that takes `/proc` long, or is likely to, is helped: the iterator over open files is loaded beside it.

use std::thread;
use std::time::Duration;

use tracing::debug;

use super::owners::OwnerSource;
use crate::kernel::bpf::OwnerLookup;
use crate::kernel::memory;
use crate::kernel::procfs;

/// A look that is over sooner is left alone. To load the iterator takes a little longer than this, before Linux 6.16 twice
/// as long.
const A_BETTER_LOOKUP_PAYS: Duration = Duration::from_millis(5);

/// A look that is not over by now waits for what is being loaded: they may be on one processor.
const PROC_IS_GIVEN_UP: Duration = Duration::from_millis(10);

/// Among so many processes a look nearly always takes longer than the loading as soon as it asks for owners: there is no
/// need to wait and see. (Kernel threads count too, and are looked at in no time.)
const A_CROWD: u64 = 250;

/// So it does among so many open files: `/proc` takes about 2 us for each.
const MANY_FILES: u64 = 4_000;

/// A look at a port that nobody has is over by then, and asked for no owners.
const A_LOOK_AT_NOBODY: Duration = Duration::from_millis(2);

/// What is done for the looks of a run, once.
#[derive(Debug)]
pub(super) struct Help {
    owners: OwnerSource,
    next: Step,
    /// Found out once.
    in_a_crowd: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Begin to load the iterator.
    Load,
    /// Leave `/proc` alone until it is there.
    Wait,
    Nothing,
}

impl Help {
    /// For looks that ask `owners`. `wanted`: whether BPF may be used and is not used yet.
    pub(super) const fn new(owners: OwnerSource, wanted: bool) -> Self {
        Self { owners, next: if wanted { Step::Load } else { Step::Nothing }, in_a_crowd: None }
    }

    /// The iterator comes in another way.
    pub(super) const fn is_not_needed(&mut self) {
        self.next = Step::Nothing;
    }

    /// How long after the beginning of a look the next step pays; `None` where there is none. `in_use` says whether the port
    /// is known to be: then the look will ask for owners.
    pub(super) fn is_due_after(&mut self, in_use: impl FnOnce() -> bool) -> Option<Duration> {
        match self.next {
            Step::Nothing => None,
            Step::Wait => Some(PROC_IS_GIVEN_UP),
            Step::Load => Some(match self.is_in_a_crowd() {
                false => A_BETTER_LOOKUP_PAYS,
                true if in_use() => Duration::ZERO,
                true => A_LOOK_AT_NOBODY,
            }),
        }
    }

    /// Takes the next step. In a crowd a look waits from the beginning, so as not to take the processor from the loading.
    pub(super) fn go_on(&mut self) {
        match std::mem::replace(&mut self.next, Step::Nothing) {
            Step::Load if OwnerLookup::may_be_loaded() => {
                self.load();
                if self.is_in_a_crowd() {
                    self.owners.wait_for_expected();
                } else {
                    self.next = Step::Wait;
                }
            }
            Step::Wait => self.owners.wait_for_expected(),
            Step::Load | Step::Nothing => {}
        }
    }

    fn load(&self) {
        let owners = self.owners.clone();
        let expected = owners.expect();
        let load = move || {
            hand_over_alone(&owners);
            drop(expected);
        };
        if let Err(error) = thread::Builder::new().name("load-bpf".to_owned()).spawn(load) {
            debug!(%error, "no thread to load BPF on: owners are looked up in /proc");
        }
    }

    /// Whether a look that asks `/proc` for owners is likely to take longer than to load the iterator.
    fn is_in_a_crowd(&mut self) -> bool {
        let find_out = || procfs::processes() >= A_CROWD || procfs::open_files() >= MANY_FILES;
        *self.in_a_crowd.get_or_insert_with(find_out)
    }
}

/// The iterator over open files works where the other programs may be refused,
/// on a kernel that is locked down.
pub(super) fn hand_over_alone(owners: &OwnerSource) {
    match OwnerLookup::load() {
        Ok(lookup) => owners.hand_over(lookup),
        Err(error) => debug!(%error, "owners are looked up in /proc"),
    }
    memory::give_back();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::eventually;

    fn help(in_a_crowd: bool) -> Help {
        Help { in_a_crowd: Some(in_a_crowd), ..Help::new(OwnerSource::default(), true) }
    }

    #[test]
    fn whoever_wants_no_bpf_is_not_helped() {
        let mut help = Help::new(OwnerSource::default(), false);
        assert_eq!(help.is_due_after(|| true), None);
    }

    #[test]
    fn in_a_crowd_a_look_is_helped_at_once_and_waits() {
        for (in_use, due) in [(true, Duration::ZERO), (false, A_LOOK_AT_NOBODY)] {
            let mut help = help(true);
            assert_eq!(help.is_due_after(|| in_use), Some(due));
            help.go_on();
            assert_eq!(help.is_due_after(|| in_use), None, "that was all");
        }
    }

    #[test]
    fn elsewhere_a_look_reads_on_for_a_while_beside_the_loading() {
        let mut help = help(false);
        assert_eq!(help.is_due_after(|| true), Some(A_BETTER_LOOKUP_PAYS));
        help.go_on();
        assert!(!help.owners.is_awaited());
        if OwnerLookup::may_be_loaded() {
            assert_eq!(help.is_due_after(|| true), Some(PROC_IS_GIVEN_UP));
        }
        help.go_on();
        assert_eq!(help.is_due_after(|| true), None, "that was all");
        // Whether it comes or not.
        eventually("nobody waits any more", || (!help.owners.is_awaited()).then_some(()));
    }
}
