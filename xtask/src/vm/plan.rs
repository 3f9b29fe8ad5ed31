//! What runs in which guest.

use std::time::Duration;

use crate::vm::guest::{Manifest, Step};
use crate::vm::image::{BIN, Content, EXAMPLES};
use crate::vm::kernel::Kernel;
use crate::vm::series::{self, Series};

/// Situations in which the features are asked for: headings of the pages with what is expected.
pub(crate) const ROOT: &str = "as root";
const BARE: &str = "without capabilities";
const LOCKED: &str = "under lockdown";

/// What the name of a step begins with that asks for features.
const FEATURES: &str = "features ";

/// The step of the unit tests, which are built only for it.
const UNIT: &str = "unit";

/// The unit tests of package guard that depend on the kernel begin with this.
const DOORS: &str = "kernel::";

/// On the guest's clock, which skips what is waited for: nothing takes this long but what hangs.
const STEP_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// On the host's clock. The slowest kernel needs a third of it on a machine with nothing else to do.
const BOOT_LIMIT: Duration = Duration::from_secs(30 * 60);
const ALL_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// Where the tests of a guest note what they skip.
const SKIPS: &str = "/tmp/skips";

/// The highest number of a capability that all these kernels know.
const LAST_CAPABILITY: i32 = 40;

/// A kernel in one state.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// How it is booted.
    pub(crate) state: State,
}

/// How a kernel is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// As it is.
    Plain,
    /// With `lockdown=confidentiality`.
    Locked,
    /// With systemd as PID 1.
    Systemd,
}

impl Machine {
    /// For reports and files.
    pub(crate) fn name(&self) -> String {
        let state = match self.state {
            State::Plain => "",
            State::Locked => "-locked",
            State::Systemd => "-systemd",
        };
        format!("{}{state}", self.kernel.series.name)
    }

    /// More words for the kernel's command line.
    pub(crate) fn append(&self) -> &'static str {
        if self.state == State::Locked { "lockdown=confidentiality" } else { "" }
    }
}

/// The situation whose features a step asks for; `None` for a step with tests.
pub(crate) fn heading(step: &str) -> Option<&str> {
    step.strip_prefix(FEATURES)
}

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// The features and what the verifier says.
    Features,
    /// Those, and these tests of the product's core.
    Core,
    /// Everything.
    All,
    /// Tests whose name contains one of these, and nothing else.
    Only(&'a [String]),
    /// What needs systemd as PID 1, or those whose name contains one of these.
    Systemd(&'a [String]),
}

impl Scope<'_> {
    /// Every boot of these kernels, the longest first, so that in the end no processor waits for the other.
    pub(crate) fn machines(self, kernels: &[Kernel]) -> Vec<Machine> {
        let mut kernels = kernels.to_vec();
        // The newest plays most, and the newer a kernel is the more its verifier does.
        kernels.reverse();
        kernels.sort_by_key(|kernel| !is_at_an_end(&kernel.series));
        let states: &[State] = match self {
            Self::Core | Self::All => &[State::Systemd, State::Plain, State::Locked],
            Self::Features => &[State::Plain, State::Locked],
            Self::Only(_) => &[State::Plain],
            Self::Systemd(_) => &[State::Systemd],
        };
        let wanted = |machine: &Machine| match (self, machine.state) {
            (Self::Core | Self::All, State::Systemd) => WITH_SYSTEMD.contains(&machine.kernel.series.name),
            _ => true,
        };
        let boots = |&state| kernels.iter().map(move |kernel| Machine { kernel: kernel.clone(), state });
        states.iter().flat_map(boots).filter(wanted).collect()
    }

    /// Whether the end-to-end tests have to be there.
    pub(crate) fn wants_end_to_end(self) -> bool {
        match self {
            Self::Features => false,
            Self::Core | Self::All | Self::Systemd(_) => true,
            Self::Only(filters) => filters.iter().any(|filter| !filter.starts_with(DOORS)),
        }
    }

    /// Whether the unit tests have to be there.
    pub(crate) fn wants_unit(self) -> bool {
        match self {
            Self::Features | Self::Systemd(_) => false,
            Self::Core | Self::All => true,
            Self::Only(filters) => filters.iter().any(|filter| filter.starts_with(DOORS)),
        }
    }

    /// The longest that a boot may take, on the host's clock.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Self::All => ALL_LIMIT,
            _ => BOOT_LIMIT,
        }
    }

    /// What this machine's image has to hold.
    pub(crate) fn content(self, machine: &Machine) -> Content {
        match self {
            Self::Features => Content::Probe,
            Self::Core | Self::Systemd(_) => Content::Tests,
            Self::All if machine.state != State::Plain => Content::Tests,
            Self::All | Self::Only(_) => Content::TestsWithNode,
        }
    }

    /// What a machine is to do.
    pub(crate) fn manifest(self, machine: &Machine) -> Manifest {
        let mut steps = Vec::new();
        match self {
            Self::Only(filters) => {
                let filters = filters.iter().map(String::as_str);
                let (doors, scenarios): (Vec<_>, Vec<_>) =
                    filters.partition(|filter| filter.starts_with(DOORS));
                if !doors.is_empty() {
                    steps.push(step(UNIT, "/bin/unit", &doors));
                }
                if !scenarios.is_empty() {
                    steps.push(step("e2e", "/bin/e2e", &scenarios));
                }
            }
            _ if machine.state == State::Systemd => {
                let filters: Vec<&str> = match self {
                    Self::Systemd(filters @ [_, ..]) => filters.iter().map(String::as_str).collect(),
                    _ => vec![NEEDS_SYSTEMD],
                };
                let mut scenarios = step("e2e", "/bin/e2e", &filters);
                let variable = |name: &str| (name.to_owned(), "1".to_owned());
                // They share one PID 1.
                scenarios
                    .environment
                    .extend([variable("PORTGUARD_TEST_PID1"), variable("RUST_TEST_THREADS")]);
                steps.push(scenarios);
            }
            _ if machine.state == State::Locked => {
                steps.push(features(LOCKED));
                if !matches!(self, Self::Features) {
                    steps.push(step("e2e", "/bin/e2e", &WITHOUT_BPF));
                }
            }
            _ => {
                steps.push(features(ROOT));
                steps.push(Step { without: (0..=LAST_CAPABILITY).collect(), ..features(BARE) });
                match self {
                    Self::Core => {
                        steps.push(step(UNIT, "/bin/unit", &[DOORS]));
                        steps.push(step("e2e", "/bin/e2e", &core(machine)));
                    }
                    Self::All => {
                        steps.push(step(UNIT, "/bin/unit", &[DOORS]));
                        steps.push(step("e2e", "/bin/e2e", &NOT_EMULATED));
                    }
                    Self::Features | Self::Only(_) | Self::Systemd(_) => {}
                }
            }
        }
        Manifest { systemd: machine.state == State::Systemd, steps }
    }
}

/// The scenarios that every kernel plays, in every tier that it has: those whose outcome is the kernel's own rules for
/// binding, leaving and destroying sockets, what it shows of sockets and processes, with `/proc` and without, and what it
/// does with the programs of a portguard that was killed. What is left to `--all-scenarios` is portguard's own doing
/// (commands, sidecar, configuration, reports), which no kernel changes.
const EVERYWHERE: [&str; 15] = [
    "binds::",
    "conflicts::at_once::",
    "crash::in_the_middle_of_an_escalation::",
    "crash::with_its_container::",
    "evicting::",
    "faults::a_gate_needs_no_proc::",
    "faults::empty_proc::",
    "leftovers::",
    "owners::",
    "pid_reuse::",
    "tiers::",
    NOT_EMULATED[0],
    NOT_EMULATED[1],
    // A minute of waiting is ten seconds of an emulator's work.
    "--skip",
    "::slow_",
];

/// Those that the oldest and the newest kernel play besides: what is true on both is hardly false between.
const AT_BOTH_ENDS: [&str; 1] = ["failure_modes::"];

/// What the others leave out of that: the tier that takes most of an emulator's time, where it only watches how the kernel
/// answers.
const NOT_BETWEEN: [&str; 2] = ["--skip", "conflicts::at_once::ebpf"];

/// What no guest plays. `--tier auto` settles on *unknown* after a second, and an emulated processor may take longer than
/// that to load BPF programs, which would have told.
const NOT_EMULATED: [&str; 2] = ["--skip", "owners::auto_sees_more_once_bpf_is_loaded"];

/// The kernels that are also booted with systemd as PID 1 when all are asked for.
const WITH_SYSTEMD: [&str; 1] = ["6.12"];

/// Those that are about units.
const NEEDS_SYSTEMD: &str = "systemd::";

/// Those that show that the lower tiers give the same verdicts where BPF is refused.
const WITHOUT_BPF: [&str; 3] = ["evicting::", "--skip", "::ebpf"];

fn is_at_an_end(series: &Series) -> bool {
    [series::ALL.first(), series::ALL.last()].contains(&Some(series))
}

fn core(machine: &Machine) -> Vec<&'static str> {
    let more: &[&str] = if is_at_an_end(&machine.kernel.series) { &AT_BOTH_ENDS } else { &NOT_BETWEEN };
    [&EVERYWHERE[..], more].concat()
}

fn features(situation: &str) -> Step {
    step(&format!("{FEATURES}{situation}"), "/bin/probe", &[])
}

fn step(name: &str, program: &str, arguments: &[&str]) -> Step {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment = vec![
        variable("PATH", BIN),
        variable("HOME", "/"),
        variable("PORTGUARD_BIN", "/bin/portguard"),
        variable("PORTGUARD_TEST_BIN_DIR", BIN),
        variable("PORTGUARD_TEST_NODE_DIR", "/node"),
        variable("PORTGUARD_TEST_EXAMPLES_DIR", EXAMPLES),
        variable("PORTGUARD_TEST_SKIPS", SKIPS),
        // Every mood of a stand-in three times, and a tenth of the machines by chance.
        variable("PORTGUARD_ROUNDS", "21"),
        variable("PORTGUARD_SCENARIOS", "50"),
        // Waiting costs nothing there, so more at a time would only slow each other down, and hide what each one costs.
        variable("RUST_TEST_THREADS", "1"),
    ];
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    Step {
        name: name.to_owned(),
        limit: STEP_LIMIT,
        collect: Some(SKIPS.to_owned()),
        environment,
        without: Vec::new(),
        command: std::iter::once(program.to_owned()).chain(arguments).collect(),
    }
}
