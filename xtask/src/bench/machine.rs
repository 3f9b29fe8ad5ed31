//! On what it was measured: without that, a number means nothing.

use std::{fs, process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::process::read;
use crate::workspace::Workspace;

/// The machine, its kernel and the moment, for the JSON files and the headings.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    date: String,
    kernel: String,
    /// When the kernel takes a processor from itself, which is what a gate waits for on a shared one.
    preemption: Option<String>,
    processor: String,
    processors: usize,
    memory_mib: u64,
    hypervisor: bool,
    load_average: f64,
    /// Which share of all processors somebody used in the second before.
    busy: f64,
    commit: String,
}

impl Machine {
    /// Looks around. What cannot be read is called unknown.
    pub(crate) fn here(workspace: &Workspace) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let unknown = || "unknown".to_owned();
        let trimmed = |text: String| text.trim().to_owned();
        let git = Command::new("git")
            .current_dir(workspace.root())
            .args(["describe", "--always", "--dirty"])
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| trimmed(String::from_utf8_lossy(&output.stdout).into_owned()));
        Self {
            date: read(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))
                .map_or_else(|_| unknown(), trimmed),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| unknown(), trimmed),
            preemption: preemption(),
            processor: field("model name").unwrap_or_else(unknown),
            processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: memory_mib().unwrap_or_default(),
            hypervisor: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load_average: load_average().unwrap_or_default(),
            busy: busy(Duration::from_secs(1)).unwrap_or(1.0),
            commit: git.unwrap_or_else(unknown),
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}, Linux {}{}, {} × {}, {} GiB{}, portguard {}",
            self.date,
            self.kernel,
            self.preemption.as_ref().map(|kind| format!(" (preempt={kind})")).unwrap_or_default(),
            self.processors,
            self.processor,
            self.memory_mib.div_ceil(1024),
            if self.hypervisor { ", virtual machine" } else { "" },
            self.commit,
        )
    }

    /// Why these numbers should not be published, if so.
    pub(crate) fn disturbed(&self) -> Option<String> {
        // Not the load average: that still remembers the build just before.
        (self.busy > CALM).then(|| {
            format!(
                "the machine was not idle when this began ({:.0} % of its processors were in use): do not publish it",
                self.busy * 100.0
            )
        })
    }

    /// For the JSON files.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "date": self.date,
            "kernel": self.kernel,
            "preemption": self.preemption,
            "processor": self.processor,
            "processors": self.processors,
            "memory_mib": self.memory_mib,
            "hypervisor": self.hypervisor,
            "load_average": self.load_average,
            "busy": self.busy,
            "commit": self.commit,
            "line": self.line(),
            "disturbed": self.disturbed(),
        })
    }
}

/// As the command line says where the kernel heeds it, else as that was built; `None` where its configuration is not
/// told. What was changed since the boot is not seen.
fn preemption() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let config = fs::read_to_string(format!("/boot/config-{}", release.trim()))
        .or_else(|_| read(Command::new("zcat").arg("/proc/config.gz")))
        .ok()?;
    preempted(&config, &fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// In the words of `preempt=`, see kernel-parameters; `rt` where everything can be preempted.
fn preempted(config: &str, command_line: &str) -> Option<String> {
    let has = |line: &str| config.lines().any(|it| it == line);
    let asked = command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("preempt="));
    if let Some(kind) = asked
        && has("CONFIG_PREEMPT_DYNAMIC=y")
    {
        return Some(kind.to_owned());
    }
    let kinds = [
        ("CONFIG_PREEMPT_RT=y", "rt"),
        ("CONFIG_PREEMPT_NONE=y", "none"),
        ("CONFIG_PREEMPT_VOLUNTARY=y", "voluntary"),
        ("CONFIG_PREEMPT=y", "full"),
        ("CONFIG_PREEMPT_LAZY=y", "lazy"),
    ];
    kinds.into_iter().find_map(|(line, kind)| has(line).then(|| kind.to_owned()))
}

fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes / 1024)
}

/// An idle machine uses less of its processors than this.
const CALM: f64 = 0.1;

/// Which share of all processors is in use during a span; `None` when the kernel does not say.
fn busy(span: Duration) -> Option<f64> {
    let before = processor_time(&fs::read_to_string("/proc/stat").ok()?)?;
    thread::sleep(span);
    let after = processor_time(&fs::read_to_string("/proc/stat").ok()?)?;
    let all = (after.0 - before.0).max(1.0);
    Some(1.0 - (after.1 - before.1) / all)
}

/// All ticks, and the idle ones with those that waited for a disk.
fn processor_time(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|tick| tick.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user and nice already.
    Some((ticks.iter().take(8).sum(), ticks.get(3)? + ticks.get(4)?))
}

/// Over the last minute.
fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_preempted_as_it_was_built_or_told() {
        let config = "CONFIG_PREEMPT_BUILD=y\n# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT=y\nCONFIG_PREEMPT_RCU=y\n";
        assert_eq!(preempted(config, "quiet preempt=none").as_deref(), Some("full"), "it does not heed that");
        let dynamic = format!("{config}CONFIG_PREEMPT_DYNAMIC=y\n");
        assert_eq!(preempted(&dynamic, "quiet preempt=none").as_deref(), Some("none"));
        assert_eq!(preempted(&dynamic, "quiet").as_deref(), Some("full"));
        assert_eq!(preempted("# CONFIG_PREEMPT is not set\n", "preempt=full"), None);
    }

    #[test]
    fn idle_time_is_read_without_counting_guests_twice() {
        let stat = "cpu  10 1 5 80 4 0 0 0 10 1\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(processor_time(stat), Some((100.0, 84.0)));
        assert_eq!(processor_time("intr 1"), None);
    }
}
