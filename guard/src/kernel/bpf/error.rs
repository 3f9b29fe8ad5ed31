use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::util::KernelVersion;
use thiserror::Error;

use crate::kernel::bpf::tracefs::TracefsError;
use crate::kernel::features::{self, Answer};
use crate::kernel::procfs;

/// Why the ebpf tier, or one operation of it, is not to be had.
#[derive(Debug, Error)]
pub enum BpfError {
    /// This binary was built without the BPF programs.
    #[error(
        "this portguard was built without its BPF programs (GUARD_BPF=stub); build it with `cargo xtask build` to get \
         the ebpf tier"
    )]
    Stub,
    /// The kernel has no such thing.
    #[error("cannot {operation} {subject}: this kernel does not have {needs} ({source})")]
    Unsupported {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        subject: String,
        /// What the kernel would need.
        needs: &'static str,
        /// What the kernel or the loader answered.
        source: Source,
    },
    /// The kernel has it and the guard may not use it.
    #[error("not permitted to {operation} {subject}: {source}; {capability}")]
    Denied {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        subject: String,
        /// What is missing, as advice to the operator.
        capability: String,
        /// What the kernel answered.
        source: Source,
    },
    /// The kernel's verifier finds fault with a program.
    #[error("the kernel's verifier rejects {subject}: {judgement} ({source})")]
    Rejected {
        /// Which program.
        subject: String,
        /// The last of the verifier's own words.
        judgement: String,
        /// What the kernel answered.
        source: Source,
    },
    /// It went wrong.
    #[error("cannot {operation} {subject}: {source}")]
    Failed {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        subject: String,
        /// What the kernel or the loader answered.
        source: Source,
    },
    /// Tracepoints cannot be looked up, or do not fit the programs.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// Neither kind of tracepoint can be had.
    #[error("{raw}; and classic tracepoints do not serve instead: {classic}")]
    NeitherWay {
        /// Why not raw ones.
        raw: Box<BpfError>,
        /// Why not classic ones.
        classic: Box<BpfError>,
    },
    /// An option makes no sense.
    #[error("{what}")]
    Option {
        /// Which, and what would be accepted.
        what: String,
    },
}

/// An error of the loader below, with all of its causes in its text.
#[derive(Debug)]
pub struct Source(Box<dyn std::error::Error + Send + Sync>);

impl Source {
    fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

impl std::fmt::Display for Source {
    /// The whole chain: aya's outer texts do not name the kernel's answer.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        // A verifier log is for developers; it is in the debug output.
        let text = text.split(" Verifier output:").next().unwrap_or(&text);
        f.write_str(text.strip_suffix('.').unwrap_or(text))
    }
}

impl std::error::Error for Source {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl BpfError {
    /// Sorts what aya reports while `operation` was tried on `subject`.
    pub(super) fn sort(
        operation: &'static str,
        subject: impl Into<String>,
        error: impl Into<EbpfError>,
    ) -> Self {
        let (error, subject) = (error.into(), subject.into());
        let verdict = Verdict::of(&error, &features::no_lockdown());
        let source = Source::new(error);
        match verdict {
            Verdict::Denied(capability) => Self::Denied { operation, subject, capability, source },
            Verdict::Unsupported(needs) => Self::Unsupported { operation, subject, needs, source },
            Verdict::Rejected(judgement) => Self::Rejected { subject, judgement, source },
            Verdict::Failed => Self::Failed { operation, subject, source },
        }
    }

    /// The kernel's types do not show what a raw tracepoint or function needs.
    pub(super) fn untold(hook: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let subject = format!("the raw tracepoint or function {hook}");
        let needs = "fitting types in BTF (Linux 5.6 or newer with CONFIG_DEBUG_INFO_BTF)";
        Self::Unsupported { operation: "use", subject, needs, source: Source::new(error) }
    }

    /// The kernel's types do not show what the iterator over open files needs.
    pub(super) fn no_iterator(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let subject = "the iterator task_file".into();
        let needs = "BPF iterators and fitting types in BTF (Linux 5.8 or newer with CONFIG_DEBUG_INFO_BTF)";
        Self::Unsupported { operation: "use", subject, needs, source: Source::new(error) }
    }

    /// Programs cannot be put on kernel functions, in the words of the rehearsal.
    pub(super) fn no_functions(function: &'static str, because: &str) -> Self {
        Self::Option { what: format!("cannot hook the kernel function {function}: {because}") }
    }

    /// A failure that is not aya's.
    pub(super) fn failed(
        operation: &'static str,
        subject: &str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Failed { operation, subject: subject.into(), source: Source::new(error) }
    }

    /// As [`BpfError::sort`] for an operation on a map.
    pub(super) fn map(operation: &'static str, map: &'static str, error: MapError) -> Self {
        Self::sort(operation, format!("the BPF map {map}"), error)
    }

    /// What to tell when both kinds of tracepoint were tried, one after the other. What a locked down kernel refuses has
    /// many faces, missing files among them, and one cause.
    pub(super) fn neither_way(raw: Self, classic: Self, no_lockdown: &Answer) -> Self {
        let ours = matches!(raw, Self::Rejected { .. });
        let neither = Self::NeitherWay { raw: Box::new(raw), classic: Box::new(classic) };
        if ours || !matches!(no_lockdown, Answer::No { .. }) {
            return neither;
        }
        Self::Denied {
            operation: "load",
            subject: "the BPF programs".into(),
            capability: advice(no_lockdown),
            source: Source::new(neither),
        }
    }

    /// The program, or what it was asked for, is at fault, and not this machine.
    #[cfg(test)]
    pub(crate) fn is_a_fault(&self) -> bool {
        match self {
            Self::Rejected { .. } | Self::Failed { .. } | Self::Option { .. } => true,
            Self::NeitherWay { raw, .. } => raw.is_a_fault(),
            _ => false,
        }
    }

    /// It is a matter of permission.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Denied { .. } => true,
            Self::NeitherWay { raw, classic } => raw.is_denied() || classic.is_denied(),
            _ => false,
        }
    }

    /// The object lacks something that this binary was built with.
    pub(super) fn missing(what: &'static str, name: &'static str) -> Self {
        let subject = format!("the {what} {name} in the embedded BPF object");
        Self::failed("find", &subject, io::Error::from(io::ErrorKind::NotFound))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Denied(String),
    Unsupported(&'static str),
    Rejected(String),
    Failed,
}

impl Verdict {
    fn of(error: &EbpfError, no_lockdown: &Answer) -> Self {
        let log = match error {
            EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. }) => verifier_log.to_string(),
            _ => String::new(),
        };
        let ring = matches!(error, EbpfError::MapError(MapError::CreateError { name, .. }) if name == guard_common::map::EVENTS);
        let raw = |io: &io::Error| io.raw_os_error();
        let errno = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>().and_then(raw));
        match (Self::by_log(&log, no_lockdown), errno) {
            (Some(verdict), _) => verdict,
            (None, Some(libc_errno::EPERM | libc_errno::EACCES)) => Self::Denied(advice(no_lockdown)),
            (None, Some(libc_errno::ENOSYS)) => {
                Self::Unsupported("the bpf() system call (CONFIG_BPF_SYSCALL)")
            }
            (None, Some(libc_errno::EINVAL)) if ring => {
                Self::Unsupported("BPF ring buffers (Linux 5.8 or newer)")
            }
            (None, _) => Self::Failed,
        }
    }

    /// What the verifier's log tells. Its errno does not: it answers EACCES to a fault in a program, which is no matter of
    /// permission.
    fn by_log(log: &str, no_lockdown: &Answer) -> Option<Self> {
        let locked = matches!(no_lockdown, Answer::No { .. });
        // Some machines never had the older helper.
        if (lacks(log, MEMORY_HELPER) && !matches!(no_lockdown, Answer::Yes))
            || (lacks(log, OLD_MEMORY_HELPER) && locked)
        {
            return Some(Self::Denied(advice(no_lockdown)));
        }
        judgement(log).map(|judgement| Self::Rejected(judgement.to_owned()))
    }
}

/// A locked down kernel does not offer the helper that reads its memory, so the verifier does not know it.
const MEMORY_HELPER: &str = "bpf_probe_read_kernel#";

/// The loader, which finds that one missing, puts this one in its place; that is missing too.
const OLD_MEMORY_HELPER: &str = "bpf_probe_read#";

/// A line with `call` is the verifier's walk through the program, which shows that the helper is there.
fn lacks(log: &str, helper: &str) -> bool {
    log.lines().any(|line| line.contains(helper) && !line.contains("call "))
}

/// The verifier's last words before its statistics; `None` when it was not asked or said nothing.
fn judgement(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise:"];
    let words = log.lines().map(str::trim).filter(|line| !line.is_empty());
    words.rev().find(|line| !STATISTICS.iter().any(|start| line.starts_with(start)))
}

mod libc_errno {
    use nix::errno::Errno;

    pub(super) const EPERM: i32 = Errno::EPERM as i32;
    pub(super) const EACCES: i32 = Errno::EACCES as i32;
    pub(super) const ENOSYS: i32 = Errno::ENOSYS as i32;
    pub(super) const EINVAL: i32 = Errno::EINVAL as i32;
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What an operator can do about EPERM.
fn advice(no_lockdown: &Answer) -> String {
    if matches!(no_lockdown, Answer::No { .. }) {
        return format!(
            "{}; boot without lockdown=confidentiality or use the netlink or poll tier",
            features::LOCKED_DOWN
        );
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        let missing = missing.join(" and ");
        return format!("run portguard as root, or with CAP_BPF and CAP_PERFMON; missing: {missing}");
    }
    if KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(5, 11, 0)) {
        return "the capabilities are there; before Linux 5.11 BPF maps count as locked memory: raise \
                RLIMIT_MEMLOCK (`ulimit -l unlimited`, LimitMEMLOCK=infinity)"
            .into();
    }
    let forbids =
        "the capabilities are there: a security module, a seccomp filter or the container runtime forbids it";
    match no_lockdown {
        Answer::CouldNotTell { because } => {
            format!("{forbids}, or the kernel is locked down, which could not be told: {because}")
        }
        Answer::Yes | Answer::No { .. } => forbids.to_owned(),
    }
}

/// `CAP_BPF` and `CAP_PERFMON` as far as they are not effective; `CAP_SYS_ADMIN`
/// includes both. Empty when `/proc` does not tell.
pub(super) fn missing_capabilities() -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let Ok(set) = procfs::effective_capabilities() else { return Vec::new() };
    let has = |capability: u32| set >> capability & 1 == 1;
    if has(SYS_ADMIN) {
        return Vec::new();
    }
    [("CAP_BPF", BPF), ("CAP_PERFMON", PERFMON)]
        .into_iter()
        .filter(|&(_, capability)| !has(capability))
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = "0: (85) call bpf_probe_read_kernel#113\n1: (61) r2 = *(u32 *)(r1 +400)\n\
                         invalid bpf_context access off=400 size=4\nprocessed 2 insns (limit 1000000)\n";
    const NO_HELPER: &str = "0: (85) call bpf_probe_read_kernel#113\nunknown func bpf_probe_read_kernel#113\n\
                             processed 1 insns (limit 1000000)\n";
    const NO_OLD_HELPER: &str = "0: (85) call bpf_probe_read#4\nunknown func bpf_probe_read#4\n";
    const NEWER_NO_OLD_HELPER: &str = "program of this type cannot use helper bpf_probe_read#4\n";
    const NEWER_NO_HELPER: &str = "program of this type cannot use helper bpf_probe_read_kernel#113\n";

    fn locked() -> Answer {
        Answer::No { because: features::LOCKED_DOWN.to_owned() }
    }

    /// EACCES and a log that shows the helper being called: this was told as lockdown.
    #[test]
    fn a_fault_in_a_program_is_not_blamed_on_lockdown() {
        let rejected = Verdict::Rejected("invalid bpf_context access off=400 size=4".to_owned());
        let untold = Answer::CouldNotTell { because: "no securityfs".to_owned() };
        for no_lockdown in [Answer::Yes, locked(), untold] {
            assert_eq!(Verdict::by_log(FAULT, &no_lockdown).as_ref(), Some(&rejected), "{no_lockdown}");
        }
        assert_eq!(Verdict::by_log("", &Answer::Yes), None);
    }

    #[test]
    fn a_helper_that_lockdown_takes_away_is_blamed_on_it_where_the_kernel_says_so() {
        for log in [NO_HELPER, NEWER_NO_HELPER, NO_OLD_HELPER, NEWER_NO_OLD_HELPER] {
            let told = |no_lockdown| Verdict::by_log(log, &no_lockdown);
            let Some(Verdict::Denied(advice)) = told(locked()) else { panic!("{:?}", told(locked())) };
            assert!(advice.starts_with(features::LOCKED_DOWN), "{advice}");
            let last = log.lines().rfind(|line| !line.starts_with("processed")).unwrap();
            assert_eq!(told(Answer::Yes), Some(Verdict::Rejected(last.to_owned())));
        }
    }

    /// Only the second refusal was told, which under lockdown is that tracefs is empty.
    #[test]
    fn both_refusals_are_told_and_lockdown_is_what_they_come_from() {
        let refused = |what: &str| BpfError::Option { what: what.to_owned() };
        let told =
            |no_lockdown| BpfError::neither_way(refused("no raw"), refused("no tracefs"), &no_lockdown);
        for no_lockdown in [Answer::Yes, Answer::CouldNotTell { because: "no securityfs".to_owned() }] {
            let error = told(no_lockdown);
            assert!(!error.is_denied(), "{error}");
            let text = error.to_string();
            assert!(text.starts_with("no raw") && text.ends_with("no tracefs"), "{text}");
            assert!(!text.contains("locked down"), "{text}");
        }
        let error = told(locked());
        assert!(error.is_denied(), "{error}");
        for part in ["no raw", "no tracefs", features::LOCKED_DOWN, "boot without lockdown=confidentiality"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        let denied = BpfError::NeitherWay { raw: Box::new(refused("no raw")), classic: Box::new(error) };
        assert!(denied.is_denied(), "{denied}");
    }

    #[test]
    fn lockdown_is_named_only_as_far_as_the_kernel_tells() {
        assert!(advice(&locked()).contains("boot without lockdown=confidentiality"));
        let told = advice(&Answer::Yes);
        assert!(!told.contains("locked down"), "{told}");
    }
}
