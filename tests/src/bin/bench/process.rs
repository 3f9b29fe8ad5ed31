//! What a process costs, by the kernel's account.

use std::fs;

/// A clock tick of `/proc/PID/stat`: `USER_HZ` is 100 on every Linux that a program sees.
const TICK_NS: u64 = 10_000_000;

/// CPU time of its threads that live, and of its children that ended and were waited for.
pub(crate) fn cpu_ns(pid: i32) -> u64 {
    let threads = tasks(pid).filter_map(|task| {
        let text = fs::read_to_string(format!("{task}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    threads.sum::<u64>() + ended_children_ns(pid).unwrap_or(0)
}

fn ended_children_ns(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // cutime and cstime are numbers 16 and 17; the first field after comm is number 3.
    let ticks = fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?;
    Some(ticks * TICK_NS)
}

/// How often its threads gave up a processor to wait, which is how often they were woken.
pub(crate) fn wakeups(pid: i32) -> u64 {
    tasks(pid).filter_map(|task| status(&format!("{task}/status"), "voluntary_ctxt_switches:")).sum()
}

/// Resident bytes, and of those the ones that nobody shares.
pub(crate) fn memory(pid: i32) -> Option<(u64, u64)> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let kilobytes = |name: &str| status(&file, name).map(|kilobytes| kilobytes * 1024);
    let private = kilobytes("Private_Clean:")? + kilobytes("Private_Dirty:")?;
    Some((kilobytes("Rss:")?, private))
}

fn status(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn tasks(pid: i32) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path().to_str()?.to_owned()))
}
