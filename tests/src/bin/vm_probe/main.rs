//! What a machine really offers portguard, one line per answer, for `cargo xtask vm-test`.
//!
//! Most of it is `portguard doctor`'s own report, and the kernel's answers to the system calls that
//! `doctor` makes meanwhile: its BPF programs are loaded by nobody else. Fields are parted by tabs:
//!
//! | line | means |
//! |---|---|
//! | `answer FEATURE ANSWER WHY` | a feature is there (`yes`), or not, and why not |
//! | `cost PROGRAM NUMBER` | how many instructions the verifier went through for a program |

#![expect(clippy::disallowed_methods, reason = "a process of its own, in which no test runs")]

#[cfg(target_arch = "x86_64")]
mod bpf;
#[cfg(target_arch = "x86_64")]
mod doctor;
#[cfg(target_arch = "x86_64")]
mod gate;
#[cfg(target_arch = "x86_64")]
mod processes;
#[cfg(target_arch = "x86_64")]
mod time_wait;
#[cfg(target_arch = "x86_64")]
mod trace;

/// One answer, printed as a line.
#[cfg(target_arch = "x86_64")]
fn answer(feature: &str, answer: &str, why: &str) {
    println!("answer\t{feature}\t{answer}\t{}", why.replace(['\t', '\n'], " "));
}

/// A yes, or no and the reason.
#[cfg(target_arch = "x86_64")]
fn answer_by(feature: &str, outcome: &Result<(), String>) {
    match outcome {
        Ok(()) => answer(feature, "yes", ""),
        Err(why) => answer(feature, "no", why),
    }
}

#[cfg(target_arch = "x86_64")]
fn main() -> anyhow::Result<()> {
    doctor::examine()?;
    gate::open()?;
    answer_by("pidfd_send_signal", &processes::signal_by_pidfd());
    answer_by("cgroup.kill", &processes::kill_cgroup());
    answer_by("SOCK_DESTROY of TIME_WAIT", &time_wait::destroy()?);
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("vm_probe reads registers of x86_64, as the test guests have them");
}
