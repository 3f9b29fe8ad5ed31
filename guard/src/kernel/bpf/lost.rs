use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use guard_common::LostReason;

/// How much the programs could not report since they were loaded, by reason.
///
/// The counts only grow. Any growth means that an event may be missing: take a
/// fresh snapshot before a gate opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub(super) counted: [u64; LostReason::ALL.len()],
    pub(super) skipped: u64,
    pub(super) malformed: u64,
}

impl Lost {
    /// Every reason with its count: those that the programs count, then
    /// `skipped` (the kernel did not run a program because it was running already
    /// on that CPU, on a classic tracepoint also because another one was; kernels
    /// since 6.1 tell for raw tracepoints, since 6.7 for classic ones) and `malformed` (a record
    /// that the guard could not decode).
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = LostReason::ALL.map(LostReason::name).into_iter();
        names.zip(self.counted).chain([("skipped", self.skipped), ("malformed", self.malformed)])
    }

    /// All losses that may have told of a change on a watched port: what a gate
    /// must not open on. Failed binds are none, and any process may cause them.
    pub fn of_the_port(&self) -> u64 {
        let ports = LostReason::ALL.iter().filter(|reason| reason.concerns_the_port());
        ports.map(|reason| self.count(*reason)).sum::<u64>() + self.skipped + self.malformed
    }

    /// All losses.
    pub fn total(&self) -> u64 {
        self.by_reason().map(|(_, count)| count).sum()
    }

    /// How often one of the programs' reasons occurred.
    pub const fn count(&self, reason: LostReason) -> u64 {
        self.counted[reason.index()]
    }
}

/// A program's `fdinfo`, kept open: reading it again gives fresh numbers.
#[derive(Debug)]
pub(super) struct Misses(File);

impl Misses {
    /// `None` where `/proc` does not show it.
    pub(super) fn of(program: impl AsFd) -> Option<Self> {
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let this = Self(File::open(path).ok()?);
        this.read().map(|_| this)
    }

    /// `recursion_misses`, or `None` on a kernel that does not count them.
    pub(super) fn read(&self) -> Option<u64> {
        let mut buffer = [0; 512];
        let length = self.0.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
    }
}
