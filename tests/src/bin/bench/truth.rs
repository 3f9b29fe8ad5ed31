//! When the port became bindable: a thread that does nothing but `bind()`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use guard_tests::spin::{Processor, Spinner, Success};
use guard_tests::wait_until;

/// The spinning thread of one round; stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Truth(Option<Spinner>);

impl Drop for Truth {
    fn drop(&mut self) {
        if let Some(spinner) = &self.0 {
            spinner.stop();
        }
    }
}

/// The moment of the release.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    /// The end of the first `bind()` that succeeded.
    pub(crate) at_ns: u64,
    /// The beginning of the last one that failed.
    pub(crate) failed_ns: u64,
}

impl Truth {
    /// Starts spinning and waits until it has lost once.
    pub(crate) fn watch(port: u16, processor: Option<Processor>) -> Result<Self> {
        let spinner = Spinner::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), processor);
        let truth = Self(Some(spinner));
        let spins = || truth.0.as_ref().is_some_and(Spinner::spins);
        ensure!(wait_until(Duration::from_secs(5), spins), "the spinning thread never lost");
        Ok(truth)
    }

    /// The first success; `None` when there was none within `patience`.
    pub(crate) fn release(mut self, patience: Duration) -> Option<Release> {
        let spinner = self.0.take()?;
        if !wait_until(patience, || spinner.ended()) {
            spinner.stop();
        }
        let Success { at_ns, blind_ns } = spinner.first_success()?;
        Some(Release { at_ns, failed_ns: at_ns - blind_ns })
    }
}

impl Release {
    /// Somebody said "free" at this moment, and a `bind()` that began after it failed.
    pub(crate) fn proves_wrong(self, said_ns: u64) -> bool {
        said_ns < self.failed_ns
    }

    /// The spinning thread ran when it counted: what it did not see is small beside what was measured.
    pub(crate) fn is_sharp_for(self, said_ns: u64) -> bool {
        let blind = self.at_ns - self.failed_ns;
        blind <= SHARP_NS.max(self.at_ns.abs_diff(said_ns) / 50)
    }
}

/// How often a round is played in which the spinning thread was put off its processor.
pub(crate) const REPEATS: usize = 3;

/// How far apart a wakeful thread's last failure and first success may be.
const SHARP_NS: u64 = 20_000;
