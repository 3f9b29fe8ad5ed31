//! When a process started: from the kernel's own number to that of
//! `/proc/PID/stat`.

use guard_core::model::StartTime;
use rustix::fs::CWD;
use rustix::io::Errno;

use super::process::clock_ticks_per_second;
use super::{ProcError, read_at};

/// How far the boot clock of this process's time namespace is ahead of the
/// machine's (time_namespaces(7), Linux 5.6). `/proc` shows start times on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootOffset {
    nanos: i128,
}

const OFFSETS: &str = "/proc/self/timens_offsets";

/// This process's own.
///
/// # Errors
///
/// When `/proc` cannot be read or has an unexpected form.
pub fn boot_offset() -> Result<BootOffset, ProcError> {
    let text = match read_at(CWD, OFFSETS) {
        Ok(text) => text,
        // No time namespaces in this kernel.
        Err(Errno::NOENT) => return Ok(BootOffset::default()),
        Err(errno) => return Err(ProcError::new(OFFSETS, errno)),
    };
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| ProcError::Malformed {
        path: OFFSETS.to_owned(),
        what: "no line \"boottime SECONDS NANOSECONDS\"",
    })
}

fn parse(offsets: &str) -> Option<BootOffset> {
    /// `CLOCK_BOOTTIME`: 5.6 showed the number.
    const NAMES: [&str; 2] = ["boottime", "7"];
    let line = offsets
        .lines()
        .find(|line| line.split_ascii_whitespace().next().is_some_and(|name| NAMES.contains(&name)))?;
    let mut numbers = line.split_ascii_whitespace().skip(1).map(str::parse::<i128>);
    let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(BootOffset { nanos: seconds * 1_000_000_000 + nanos })
}

impl BootOffset {
    /// The start time as `/proc/PID/stat` shows it, of a task whose
    /// `start_boottime` is `nanos` on the machine's own boot clock.
    pub fn start_time(self, nanos: u64) -> StartTime {
        let here = u128::try_from(i128::from(nanos) + self.nanos).unwrap_or(0);
        let ticks = here * u128::from(clock_ticks_per_second()) / 1_000_000_000;
        StartTime(u64::try_from(ticks).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_in_both_spellings() {
        for (text, nanos) in [
            ("monotonic           0         0\nboottime            0         0\n", 0),
            ("monotonic     86400         0\nboottime       604800       5\n", 604_800_000_000_005),
            ("1 0 0\n7 -2 500000000\n", -1_500_000_000),
        ] {
            assert_eq!(parse(text), Some(BootOffset { nanos }), "{text}");
        }
        assert_eq!(parse("monotonic 0 0\n"), None);
        assert_eq!(parse("boottime x 0\n"), None);
    }

    #[test]
    fn ticks_are_cut_off_and_shifted() {
        let hz = clock_ticks_per_second();
        let tick = 1_000_000_000 / hz;
        assert_eq!(BootOffset::default().start_time(10 * tick - 1), StartTime(9));
        assert_eq!(BootOffset { nanos: 1 }.start_time(10 * tick - 1), StartTime(10));
        assert_eq!(BootOffset { nanos: -1_000_000_000 }.start_time(5), StartTime(0));
    }

    #[test]
    fn this_process_s_offset_can_be_read() {
        boot_offset().unwrap();
    }
}
