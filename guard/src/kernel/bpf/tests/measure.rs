//! What things cost; nothing here passes or fails by time.

use std::thread;

use guard_core::model::Instant;

use super::*;
use crate::kernel::sandbox::listening;

/// Where the time of a start goes, and how late an event comes. Run it with
/// `--ignored --nocapture`, alone.
#[test]
#[ignore = "a measurement"]
fn measure_load_and_latency() {
    const NAME: &str = "measure_load_and_latency";
    use std::time::Instant as Clock;

    let timed = |what: &str, rounds: u32, mut work: Box<dyn FnMut()>| {
        work();
        let start = Clock::now();
        (0..rounds).for_each(|_| work());
        println!("{what}: {:?}", start.elapsed() / rounds);
    };
    timed("read BTF", 20, Box::new(|| drop(std::fs::read(crate::kernel::btf::VMLINUX).unwrap())));
    timed("read BTF and resolve members", 20, Box::new(|| drop(settings::KernelTypes::read_anew().unwrap())));
    timed("aya's own loader, before it does anything", 5, Box::new(|| drop(aya::EbpfLoader::new())));
    timed("tracefs", 20, Box::new(|| crate::kernel::bpf::tracefs::Tracefs::with(|_| ()).unwrap()));
    for attach in WAYS {
        let options = BpfOptions { attach, ..BpfOptions::default() };
        let (mut loads, mut drops) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let start = Clock::now();
            let bpf = Bpf::load(&options).unwrap();
            loads.push(start.elapsed());
            let start = Clock::now();
            drop(bpf);
            drops.push(start.elapsed());
        }
        let first = loads[0];
        [&mut loads, &mut drops].into_iter().for_each(|times| times.sort());
        println!("{attach:?}: first load {first:?}, load {:?}, at most {:?}", loads[4], loads[8]);
        println!("{attach:?}: drop {:?}, at most {:?}", drops[4], drops[8]);
        netns(NAME, move || latency(attach));
    }
}

/// How late an event comes, and what asking for losses costs.
fn latency(attach: AttachBy) {
    const NAME: &str = "latency";
    use std::time::Instant as Clock;

    let port = free_port();
    let Some(mut watcher) = Watcher::watching(NAME, attach, listeners(port)) else { return };
    report("release → user space, same thread", &mut watcher, || {
        drop(listening("127.0.0.1", Some(port), REUSE))
    });

    let (order, orders) = std::sync::mpsc::channel::<()>();
    let closer = thread::spawn(move || {
        orders.iter().for_each(|()| drop(listening("127.0.0.1", Some(port), REUSE)));
    });
    report("release → user space, woken by epoll", &mut watcher, || order.send(()).unwrap());
    drop(order);
    closer.join().unwrap();

    let each = |what: &str, work: &dyn Fn() -> bool| {
        let start = Clock::now();
        (0..1000).for_each(|_| assert!(work()));
        println!("{what}: {:?}", start.elapsed() / 1000);
    };
    each("lost()", &|| watcher.bpf.lost().unwrap().total() == 0);
    each("lost_quick()", &|| watcher.bpf.lost_quick().unwrap().total() == 0);
}

/// Releases a listener by `close` again and again, and prints how long after
/// the kernel's time stamp the event was in hand.
fn report(what: &str, watcher: &mut Watcher, mut close: impl FnMut()) {
    let mut latencies = Vec::new();
    for _ in 0..2000 {
        close();
        let mut released = None;
        while released.is_none() {
            let mut events = [EpollEvent::empty()];
            watcher.epoll.wait(&mut events, EpollTimeout::try_from(PATIENCE).unwrap()).unwrap();
            watcher.bpf.drain(usize::MAX, |event| {
                if let Event::Released(it) = event {
                    released = Some((it.at, now()));
                }
            });
        }
        latencies.extend(released.map(|(at, seen)| seen.since(at)));
    }
    latencies.sort();
    println!("{what}: median {:?}, p99 {:?}", latencies[1000], latencies[1980]);
}

fn now() -> Instant {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    Instant::from_nanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
