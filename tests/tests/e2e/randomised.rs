//! Hundreds of small machines by chance, with real processes: whoever is not stale is not signalled.
//!
//! The same seed is the same machine; `PORTGUARD_SCENARIOS` sets how many, `PORTGUARD_SEED` the first.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use guard_tests::netns::Netns;
use guard_tests::skip::skip;
use guard_tests::standin::Plan;
use guard_tests::{Caller, Cgroup, Finished, Portguard, Proc, Standin, Tier, stays};
use std::time::Duration;

const SCENARIOS: u64 = 500;

/// Most of a scenario is waiting.
const AT_ONCE: usize = 6;

const TEST: &str = "randomised::nobody_but_the_stale_is_signalled";

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn percent(&mut self, often: u64) -> bool {
        self.next() % 100 < often
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.next() % choices.len() as u64).expect("a short list")]
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn nobody_but_the_stale_is_signalled() {
    if !nix::unistd::geteuid().is_root() {
        return skip(TEST, "a private network namespace needs root");
    }
    let (first, count) = (number("PORTGUARD_SEED", 0), number("PORTGUARD_SCENARIOS", SCENARIOS));
    let (next, ended, refused) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            // A network namespace belongs to a thread; each scenario gets both anew.
            let played = std::thread::spawn(move || catch_unwind(AssertUnwindSafe(|| play(seed)))).join();
            match played {
                Ok(Ok(finished)) => {
                    ended.fetch_add(u64::from(!finished.signals().is_empty()), Ordering::Relaxed);
                    refused.fetch_add(u64::from(finished.code == Some(4)), Ordering::Relaxed);
                }
                Ok(Err(panic)) | Err(panic) => {
                    eprintln!("PORTGUARD_SEED={seed} PORTGUARD_SCENARIOS=1 plays it again");
                    resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
    });
    let (ended, refused) = (ended.into_inner(), refused.into_inner());
    eprintln!("{count} scenarios: somebody was ended in {ended}, {refused} were refused");
    if count >= 100 {
        assert!(ended > count / 5 && refused > count / 20, "{ended} ended, {refused} refused of {count}");
    }
}

/// Everybody in a scenario, and whether portguard may signal them.
struct People {
    standins: Vec<(Standin, bool)>,
    units: Vec<Cgroup>,
}

impl People {
    fn may_signal(&self, process: Proc) -> bool {
        self.standins
            .iter()
            .any(|(standin, stale)| *stale && (standin.id() == process || standin.sharers.contains(&process)))
    }

    fn check(&self, finished: &Finished) {
        for (process, signal) in finished.signals() {
            assert!(self.may_signal(process), "{signal} to {process}, which is not stale\n{finished}");
        }
        for (standin, _) in self.standins.iter().filter(|(_, stale)| !stale) {
            assert!(
                stays(Duration::from_millis(30), || standin.all_alive()) && !standin.termed(),
                "{} was ended\n{finished}",
                standin.id()
            );
        }
    }
}

fn play(seed: u64) -> Finished {
    let chance = &mut Chance(seed);
    let netns = Netns::enter().expect("a network namespace");
    let port = netns.free_port();
    // Loading BPF programs takes longer than a whole scenario without.
    let tier = if seed.is_multiple_of(25) && Tier::Ebpf.missing().is_none() {
        Tier::Ebpf
    } else {
        chance.of(&[Tier::Netlink, Tier::Poll])
    };
    let by_unit = chance.percent(50);
    let mut people = people(chance, port, by_unit);
    let mut free = Portguard::new("free", tier)
        .arg("--port")
        .arg(&port.to_string())
        .address("127.0.0.1")
        .drain(chance.of(&["20ms", "60ms"]))
        .timeout("1500ms");
    free = match (by_unit, chance.percent(70)) {
        (true, true) => free.matching("--tag gateway").arg("--unit=gateway"),
        (true, false) => free.arg("--unit=gateway"),
        (false, _) => free.matching("--tag gateway"),
    };
    if chance.percent(30) {
        free = free.arg("--tree");
    } else if chance.percent(20) {
        free = free.arg("--cgroup-kill");
    }
    let run = free.start();
    let somebody_comes = chance.percent(40);
    if somebody_comes {
        // Whoever comes while it runs came after the request, whatever it looks like.
        run.report.wait_for(Duration::from_secs(20), |line| line.contains("\"snapshot\"").then_some(()));
        let words = ["--tag", "gateway", "--reuseport", "--bind-attempts", "20"];
        let late = Plan::new(words).listen("127.0.0.1", port).start();
        people.standins.push((late, false));
    }
    let finished = run.finish();
    people.check(&finished);
    if finished.code == Some(0) && !somebody_comes {
        assert!(netns.bindable("127.0.0.1", port), "{finished}");
    }
    finished
}

/// Old gateways, their children, and bystanders of every kind.
fn people(chance: &mut Chance, port: u16, by_unit: bool) -> People {
    let mut people = People { standins: Vec::new(), units: Vec::new() };
    // Without cgroups to make, everybody is where this test is, which is in no service.
    let unit = Cgroup::new("gateway.service").ok();
    let other = Cgroup::new("other.service").ok();
    for _ in 0..=chance.next() % 3 {
        let home = match chance.next() % 4 {
            0 => None,
            1 if chance.percent(30) => other.as_ref(),
            _ => unit.as_ref(),
        };
        let in_other =
            home.is_some() && home.map(|home| &home.path) == other.as_ref().map(|other| &other.path);
        let in_unit = home.is_some() && !in_other;
        let looks_like_it = chance.percent(75);
        let on_term = chance.of(&["exit", "hang", "ignore", "close-hang", "delay=15ms", "close-then=10ms"]);
        let sharers = chance.of(&["0", "0", "1", "2"]);
        let tag = if looks_like_it { "gateway" } else { "bystander" };
        let words = format!("--reuseport --tag {tag} --on-term {on_term} --fork-sharer {sharers}");
        let by = home.map_or_else(Caller::default, Caller::within);
        let address = if looks_like_it || chance.percent(40) { "127.0.0.1" } else { "127.0.0.3" };
        let standin = Plan::new(words.split_whitespace()).by(by).listen(address, port).start();
        // By its unit alone a bystander in it is recognised too, and outside nobody is. Which rules are
        // asked for is drawn later: this is who may be ended under any of them.
        let stale = if by_unit { in_unit || (looks_like_it && !in_other) } else { looks_like_it };
        people.standins.push((standin, stale));
    }
    people.units.extend(unit.into_iter().chain(other));
    people
}
