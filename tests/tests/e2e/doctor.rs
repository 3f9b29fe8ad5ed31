//! `portguard doctor` names what is missing, and the command or the setting that gives it.

use std::process::Command;

use guard_tests::caller::{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, Caller, Forbidden, NOBODY};
use guard_tests::child::output;
use guard_tests::portguard::binary;
use serde_json::Value;

fn report(caller: &Caller) -> Value {
    let mut command = Command::new(caller.reachable(&binary()));
    command.args(["doctor", "--json"]);
    caller.apply(&mut command);
    let output = output(&mut command).expect("run portguard doctor");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Name, answer and remedy of each feature.
fn features(report: &Value) -> Vec<(&str, &str, Option<&str>)> {
    let text = |feature: &'_ Value, field: &str| feature[field].as_str().map(str::to_owned);
    let features = report["features"].as_array().expect("features");
    for feature in features {
        assert!(text(feature, "name").is_some() && text(feature, "answer").is_some(), "{feature}");
    }
    features
        .iter()
        .map(|feature| {
            let of = |field: &str| feature[field].as_str();
            (of("name").unwrap_or_default(), of("answer").unwrap_or_default(), of("remedy"))
        })
        .collect()
}

/// For this caller these features are missing, with these words in their remedies.
fn lacks(name: &str, caller: &Caller, expected: &[(&str, &str)]) {
    if !nix::unistd::geteuid().is_root() {
        return guard_tests::skip::skip(name, "other users' rights need root");
    }
    let report = report(caller);
    let features = features(&report);
    for (name, answer, remedy) in &features {
        let has_one = remedy.is_some() || *name == "unprivileged_bpf";
        assert_eq!(has_one && *answer == "no", *answer == "no", "{name} has no remedy\n{report}");
        assert!(*answer == "no" || remedy.is_none(), "{name} needs no remedy\n{report}");
    }
    for (missing, word) in expected {
        let found = features.iter().find(|(name, ..)| name == missing);
        let Some(("no", Some(remedy))) = found.map(|(_, answer, remedy)| (*answer, *remedy)) else {
            panic!("{missing} is there\n{report}");
        };
        assert!(remedy.contains(word), "{missing}: {remedy}");
    }
}

/// What lockdown takes away is blamed on nothing else. Only the file that tells of it is put in place:
/// a kernel is locked down when it boots.
#[test]
fn under_lockdown_nothing_but_lockdown_is_blamed() {
    const TEST: &str = "doctor::under_lockdown_nothing_but_lockdown_is_blamed";
    const SCRIPT: &str = "mount -t tmpfs tmpfs /sys/kernel/security &&
        echo 'none integrity [confidentiality]' > /sys/kernel/security/lockdown && exec \"$0\" doctor --json";
    if !nix::unistd::geteuid().is_root() {
        return guard_tests::skip::skip(TEST, "a mount namespace needs root");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]).arg(binary());
    let output = output(&mut command).expect("run unshare");
    if !output.status.success() {
        return guard_tests::skip::skip(TEST, &String::from_utf8_lossy(&output.stderr));
    }
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    for name in ["no_lockdown", "kernel_functions", "tracefs"] {
        let features = features(&report);
        let found = features.iter().find(|(found, ..)| *found == name);
        let Some((_, "no", Some(remedy))) = found else { panic!("{name}: {found:?}\n{report}") };
        assert!(remedy.contains("boot without lockdown=confidentiality"), "{name}: {remedy}");
    }
}

#[test]
fn an_ordinary_user_is_told_the_capabilities() {
    lacks(
        "doctor::an_ordinary_user_is_told_the_capabilities",
        &Caller::user(NOBODY),
        &[("CAP_BPF", "AmbientCapabilities=CAP_BPF"), ("sock_destroy", "CAP_NET_ADMIN")],
    );
}

#[test]
fn hidepid_is_named() {
    lacks(
        "doctor::hidepid_is_named",
        &Caller::user(NOBODY).hidepid(),
        &[("all_processes", "mount -o remount,hidepid=0 /proc")],
    );
}

#[test]
fn one_missing_capability_is_named() {
    for (capability, name) in
        [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]
    {
        lacks("doctor::one_missing_capability_is_named", &Caller::root_without(capability), &[(name, name)]);
    }
}

#[test]
fn missing_types_and_tracefs_are_named() {
    let caller = Caller::root_without(CAP_SYS_ADMIN).hiding(&[
        "/sys/kernel/btf",
        "/sys/kernel/tracing",
        "/sys/kernel/debug",
    ]);
    lacks(
        "doctor::missing_types_and_tracefs_are_named",
        &caller,
        &[("btf", "CONFIG_DEBUG_INFO_BTF"), ("tracefs", "mount -t tracefs nodev /sys/kernel/tracing")],
    );
}

#[test]
fn a_forbidden_netlink_is_named() {
    lacks(
        "doctor::a_forbidden_netlink_is_named",
        &Caller::default().forbidding(Forbidden::Netlink),
        &[("sock_diag", "AF_NETLINK"), ("destroy_announcements", "AF_NETLINK")],
    );
}

#[test]
fn a_forbidden_bpf_leaves_the_netlink_tier_and_says_why() {
    const NAME: &str = "doctor::a_forbidden_bpf_leaves_the_netlink_tier_and_says_why";
    if !nix::unistd::geteuid().is_root() {
        return guard_tests::skip::skip(NAME, "a seccomp filter for root needs root");
    }
    let report = report(&Caller::default().forbidding(Forbidden::Bpf));
    assert_eq!(report["tier"], "netlink", "{report}");
    assert!(report["why_not_ebpf"].as_str().is_some_and(|why| why.contains("BPF")), "{report}");
}
