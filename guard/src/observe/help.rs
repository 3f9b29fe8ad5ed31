//! A look that takes `/proc` long, or is likely to, is helped: the iterator over open files is loaded beside it.

use std::thread;
use std::time::Duration;

use tracing::debug;

use super::owners::OwnerSource;
use crate::kernel::bpf::OwnerLookup;
use crate::kernel::memory;
use crate::kernel::procfs;
use crate::kernel::scheduling::one_processor;

/// A look that is over sooner is left alone. To load the iterator takes a little longer than this, before Linux 6.16 twice
/// as long.
const A_BETTER_LOOKUP_PAYS: Duration = Duration::from_millis(5);

/// Where there is one processor, a look that is not over by now takes it from the loading no longer.
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
    surroundings: Option<Surroundings>,
    /// Loads the iterator and hands it over.
    load: fn(&OwnerSource),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Begin to load the iterator.
    Load,
    /// Leave `/proc` alone until it is there.
    Wait,
    Nothing,
}

/// Where looks are taken.
#[derive(Clone, Copy, Debug)]
struct Surroundings {
    /// A look that asks `/proc` for owners is likely to take longer than to load the iterator.
    crowd: bool,
    /// Whoever reads `/proc` meanwhile takes the processor from the loading.
    one_processor: bool,
}

impl Surroundings {
    fn find_out() -> Self {
        // The counts are the machine's, and `/proc` may show a few of its processes only.
        let shows_all = procfs::in_initial_pid_namespace().unwrap_or(false);
        let crowd = || is_a_crowd(procfs::processes(), procfs::open_files());
        Self { crowd: shows_all && crowd(), one_processor: one_processor() }
    }
}

const fn is_a_crowd(processes: u64, files: u64) -> bool {
    processes >= A_CROWD || files >= MANY_FILES
}

impl Help {
    /// For looks that ask `owners`. `wanted`: whether BPF may be used and is not used yet.
    pub(super) fn new(owners: OwnerSource, wanted: bool) -> Self {
        let next = if wanted { Step::Load } else { Step::Nothing };
        Self { owners, next, surroundings: None, load: hand_over_alone }
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
            Step::Load => Some(match self.surroundings().crowd {
                false => A_BETTER_LOOKUP_PAYS,
                true if in_use() => Duration::ZERO,
                true => A_LOOK_AT_NOBODY,
            }),
        }
    }

    /// Takes the next step. Where there is more than one processor a look never waits: what comes first is taken.
    pub(super) fn go_on(&mut self) {
        match std::mem::replace(&mut self.next, Step::Nothing) {
            Step::Load if OwnerLookup::may_be_loaded() => {
                self.begin_to_load();
                match self.surroundings() {
                    Surroundings { one_processor: false, .. } => {}
                    Surroundings { crowd: true, .. } => self.owners.wait_for_expected(),
                    Surroundings { crowd: false, .. } => self.next = Step::Wait,
                }
            }
            Step::Wait => self.owners.wait_for_expected(),
            Step::Load | Step::Nothing => {}
        }
    }

    fn begin_to_load(&self) {
        let owners = self.owners.clone();
        let expected = owners.expect();
        let load = self.load;
        let whole = move || {
            load(&owners);
            drop(expected);
            memory::give_back();
        };
        if let Err(error) = thread::Builder::new().name("load-bpf".to_owned()).spawn(whole) {
            debug!(%error, "no thread to load BPF on: owners are looked up in /proc");
        }
    }

    fn surroundings(&mut self) -> Surroundings {
        *self.surroundings.get_or_insert_with(Surroundings::find_out)
    }
}

/// The iterator over open files works where the other programs may be refused,
/// on a kernel that is locked down.
pub(super) fn hand_over_alone(owners: &OwnerSource) {
    match OwnerLookup::load() {
        Ok(lookup) => owners.hand_over(lookup),
        Err(error) => debug!(%error, "owners are looked up in /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::skip;

    fn never(_: &OwnerSource) {
        loop {
            thread::park();
        }
    }

    /// With an iterator that never comes.
    fn help(crowd: bool, one_processor: bool) -> Help {
        let surroundings = Some(Surroundings { crowd, one_processor });
        Help { surroundings, load: never, ..Help::new(OwnerSource::default(), true) }
    }

    #[test]
    fn whoever_wants_no_bpf_is_not_helped() {
        let mut help = Help::new(OwnerSource::default(), false);
        assert_eq!(help.is_due_after(|| true), None);
    }

    #[test]
    fn many_processes_are_a_crowd_and_so_are_many_files() {
        for (processes, files, crowd) in
            [(249, 3_999, false), (250, 0, true), (0, 4_000, true), (0, 0, false)]
        {
            assert_eq!(is_a_crowd(processes, files), crowd, "{processes} processes, {files} files");
        }
    }

    /// The steps until there are no more: when each is due, and whether looks wait after it.
    fn steps(mut help: Help, in_use: bool) -> Vec<(Duration, bool)> {
        let mut steps = Vec::new();
        while let Some(due) = help.is_due_after(|| in_use) {
            help.go_on();
            steps.push((due, help.owners.is_awaited()));
        }
        steps
    }

    #[test]
    fn a_look_is_helped_at_once_in_a_crowd_and_waits_where_there_is_one_processor() {
        if !OwnerLookup::may_be_loaded() {
            return skip("a_look_is_helped_at_once_in_a_crowd_and_waits", "loading BPF takes root");
        }
        for in_use in [false, true] {
            let at_once = if in_use { Duration::ZERO } else { A_LOOK_AT_NOBODY };
            assert_eq!(steps(help(true, true), in_use), [(at_once, true)]);
            assert_eq!(steps(help(true, false), in_use), [(at_once, false)]);
            let later = [(A_BETTER_LOOKUP_PAYS, false), (PROC_IS_GIVEN_UP, true)];
            assert_eq!(steps(help(false, true), in_use), later);
            assert_eq!(steps(help(false, false), in_use), later[..1]);
        }
    }
}
