//! Whether the kernel lets programs hook its functions (fentry, fexit): the real
//! load is rehearsed with a program that does nothing.

use std::sync::OnceLock;

use guard_common::{INET_CSK_GET_PORT, INET_PUT_PORT, INET_TWSK_KILL};
use nix::errno::Errno;

use super::call::{ProgLoad, TRACE_FEXIT, TYPE_TRACING, load_program};
use super::settings::KernelTypes;
use crate::kernel::bpf::tracefs::Tracefs;
use crate::kernel::features::Answer;

/// `r0 = 0; exit`
const NOTHING: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Whether a program can be put on the exit of the kernel function that has the
/// number `function` in the kernel's types. A yes or a no is remembered.
pub(super) fn hook_functions(function: u32) -> Answer {
    static KNOWN: OnceLock<Answer> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return known.clone();
    }
    let kernel = rustix::system::uname();
    let answer = match (kernel.release().to_str(), kernel.version().to_str()) {
        (Ok(release), Ok(version)) if wedges(release, version) => Answer::No { because: WEDGES.to_owned() },
        _ => answer(load(function)),
    };
    if !matches!(answer, Answer::CouldNotTell { .. }) {
        return KNOWN.get_or_init(|| answer).clone();
    }
    answer
}

const WEDGES: &str = "before Linux 6.9 a preemptible kernel may never finish taking programs off its functions once \
                      a process that has some was killed, and then nobody on that machine can attach or detach any";

/// Taking a program off a function waits for a grace period of RCU Tasks. On preemptible kernels before 6.9 that waits for
/// whoever is in the middle of its exit, and the first process of a PID namespace waits there for all others: for a killed
/// portguard too, which waits for that grace period (mended by the kernel's commit 1612160b9127; where the kernel is not
/// preemptible there is no RCU Tasks to wait for). That the namespace is the initial one does not decide it: a killed
/// sidecar was seen to wait forever there too. `version` is what `uname -v` says.
fn wedges(release: &str, version: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    (major, minor) < (6, 9) && version.contains("PREEMPT")
}

/// Whether programs may be put on all the kernel functions that there are programs for.
pub fn may_hook_functions() -> Answer {
    let types = KernelTypes::read();
    let refused = [INET_PUT_PORT, INET_TWSK_KILL, INET_CSK_GET_PORT]
        .iter()
        .find_map(|function| types.hook_function(function).err());
    refused.map_or(Answer::Yes, |error| Answer::No { because: error.to_string() })
}

/// Whether tracefs can be read: it describes the classic tracepoints.
pub fn tracefs() -> Answer {
    match Tracefs::with(|_| ()) {
        Ok(()) => Answer::Yes,
        Err(error) => Answer::No { because: error.to_string() },
    }
}

fn answer(loaded: Result<(), Errno>) -> Answer {
    let no = |because: &str| Answer::No { because: because.to_owned() };
    match loaded {
        Ok(()) => Answer::Yes,
        Err(Errno::EPERM | Errno::EACCES) => no(
            "the kernel answers EPERM to programs on its functions: a hardened kernel or a security module \
                forbids them, or CAP_BPF and CAP_PERFMON are missing",
        ),
        Err(Errno::ENOSYS) => no("the kernel has no bpf() system call (CONFIG_BPF_SYSCALL)"),
        Err(Errno::EINVAL | Errno::ENOTSUP) => no(
            "this kernel has no BPF trampolines: they need Linux 5.5, on arm64 6.0, and CONFIG_FUNCTION_TRACER",
        ),
        Err(errno) => {
            Answer::CouldNotTell { because: format!("loading a program that does nothing failed: {errno}") }
        }
    }
}

fn load(function: u32) -> Result<(), Errno> {
    let license = c"GPL";
    let attr = ProgLoad {
        prog_type: TYPE_TRACING,
        insn_cnt: NOTHING.len() as u32,
        insns: NOTHING.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: TRACE_FEXIT,
        attach_btf_id: function,
        ..ProgLoad::default()
    };
    // SAFETY: what it points to outlives the call.
    unsafe { load_program(&attr) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A portguard that was killed on Debian 12 never ended, and nothing could be attached there any more.
    #[test]
    fn a_preemptible_kernel_before_6_9_is_left_alone() {
        for (release, version, expected) in [
            ("6.1.0-50-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-06-01)", true),
            ("6.8.0-45-generic", "#45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024", true),
            ("5.10.0-32-cloud-amd64", "#1 SMP Debian 5.10.223-1 (2024-08-10)", false),
            ("6.9.0", "#1 SMP PREEMPT_DYNAMIC", false),
            ("6.12.107+deb13-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1", false),
            ("7.2-rc1", "#1 SMP PREEMPT_RT", false),
            ("unknown", "PREEMPT", false),
        ] {
            assert_eq!(wedges(release, version), expected, "{release} {version}");
        }
    }

    #[test]
    fn a_refusal_is_no_and_a_strange_failure_is_no_answer() {
        assert_eq!(answer(Ok(())), Answer::Yes);
        assert!(matches!(answer(Err(Errno::EPERM)), Answer::No { because } if because.contains("EPERM")));
        assert!(matches!(answer(Err(Errno::ENOMEM)), Answer::CouldNotTell { .. }));
    }
}
