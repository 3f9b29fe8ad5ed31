//! Both cores busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// One thread per processor that does nothing but count, until this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let processors =
            std::fs::read_to_string("/sys/devices/system/cpu/online").context("count processors")?;
        let mut threads = Vec::new();
        for processor in listed(&processors) {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                let mut only = CpuSet::new();
                if only.set(processor).is_ok() {
                    // Not allowed there: then it loads whatever processor it gets.
                    let _elsewhere = sched_setaffinity(Pid::from_raw(0), &only);
                }
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It does nothing that could panic.
            let _joined = thread.join();
        }
    }
}

/// `0-2,5` → 0, 1, 2, 5.
fn listed(ranges: &str) -> Vec<usize> {
    let mut all = Vec::new();
    for range in ranges.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) {
            all.extend(first..=last);
        }
    }
    all
}
