//! The measuring program of `cargo xtask bench` runs. What it measures is nobody's business here,
//! but that no gate opens before the port is bindable always is.

use std::process::Command;

use guard_tests::Tier;
use guard_tests::child::output;
use guard_tests::skip::skip;
use guard_tests::standin::built;
use serde_json::Value;

/// The smallest run of one section: its samples.
fn smallest(section: &str) -> Option<Vec<Value>> {
    if !nix::unistd::geteuid().is_root() {
        skip(&format!("bench::{section}"), "a private network namespace needs root");
        return None;
    }
    let output = output(Command::new(built("bench")).args([section, "--smoke"])).expect("start bench");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "bench {section}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let lines = said.lines().map(|line| serde_json::from_str(line).expect("a JSON line"));
    let (samples, others): (Vec<Value>, Vec<_>) = lines.partition(|line: &Value| line["kind"] == "sample");
    for why in others.iter().filter(|line| line["kind"] == "progress") {
        // Shown when the test fails.
        println!("{}", why["text"]);
    }
    Some(samples)
}

/// The values of one measure of the subjects whose names begin so.
fn values(samples: &[Value], subject: &str, measure: &str) -> Vec<f64> {
    let wanted = |sample: &&Value| {
        sample["measure"] == measure
            && sample["subject"].as_str().is_some_and(|name| name.starts_with(subject))
    };
    samples.iter().filter(wanted).filter_map(|sample| sample["value"].as_f64()).collect()
}

#[test]
fn the_smallest_round_measures_every_tier_and_no_gate_opens_too_early() {
    let Some(samples) = smallest("release") else { return };
    for tier in Tier::ALL.into_iter().filter(|tier| tier.missing().is_none()) {
        let gate = format!("portguard gate, {tier}");
        let measured = values(&samples, &gate, "bindable → says so").len();
        // On a busy machine the thread that knows the truth may have been off its processor.
        let blind = values(&samples, &gate, "blind").len();
        assert_eq!(measured / 2 + blind, 1, "{tier}: {samples:?}");
        let client = format!("portguard gate, client of the sidecar, {tier}");
        let measured = values(&samples, &client, "bindable → says so").len();
        let blind = values(&samples, &client, "blind").len();
        assert_eq!(measured / 2 + blind, 1, "{client}: {samples:?}");
    }
    assert!(values(&samples, "portguard", "failed").is_empty(), "{samples:?}");
    assert!(values(&samples, "portguard", "free too early").iter().all(|&early| early == 0.0), "{samples:?}");
}

#[test]
fn the_smallest_restart_frees_the_port_before_it_returns() {
    let Some(samples) = smallest("restart") else { return };
    assert!(values(&samples, "portguard", "failed").is_empty(), "{samples:?}");
    let subjects = [("portguard free", "dead time"), ("portguard restart, client of the sidecar", "total")];
    let measured = subjects.map(|(subject, measure)| values(&samples, subject, measure).len());
    let blind = subjects.map(|(subject, _)| values(&samples, subject, "blind").len());
    // On a busy machine the thread that knows the truth may have been off its processor, but not each time.
    assert!((0..2).all(|index| measured[index] + blind[index] > 0), "{samples:?}");
    assert!(measured.iter().any(|&count| count > 0), "{samples:?}");
    for wrong in ["free too early", "successor lost"] {
        assert!(
            values(&samples, "portguard", wrong).iter().all(|&value| value == 0.0),
            "{wrong}: {samples:?}"
        );
    }
}

#[test]
fn the_smallest_run_of_what_watching_and_waiting_cost() {
    let Some(samples) = smallest("idle") else { return };
    let woken = values(&samples, "portguard gate", "wake-ups per second").len();
    let tiers = Tier::ALL.into_iter().filter(|tier| tier.missing().is_none()).count();
    assert_eq!(woken, tiers, "{samples:?}");
    let sidecars = values(&samples, "portguard run", "wake-ups per second").len();
    assert_eq!(sidecars, 2 * tiers, "{samples:?}");
    let Some(samples) = smallest("host") else { return };
    let measured = |name: &str| values(&samples, name, "throughput, of that with nothing attached").len();
    assert_eq!(measured("nothing"), 1, "{samples:?}");
    assert_eq!(measured("portguard gate, netlink"), 2, "{samples:?}");
    assert_eq!(measured("portguard run, netlink"), 2, "{samples:?}");
}

#[test]
fn the_smallest_curves_have_two_sizes() {
    let Some(samples) = smallest("scale") else { return };
    for scenario in [
        "owner of a listener",
        "port with N TIME_WAIT sockets",
        "one gate for N addresses",
        "one sidecar for N services",
        "N services restarted at once",
    ] {
        let sizes: std::collections::BTreeSet<u64> = samples
            .iter()
            .filter(|sample| {
                sample["scenario"].as_str().is_some_and(|name| name.starts_with(scenario))
                    && sample["subject"].as_str().is_some_and(|name| name.starts_with("portguard"))
            })
            .filter_map(|sample| sample["at"].as_u64())
            .collect();
        assert_eq!(sizes.len(), 2, "{scenario}: {samples:?}");
    }
}
