//! How the tests went, for people: a row for each theme and tier, a column for each kernel.

use std::collections::{BTreeMap, BTreeSet};

use crate::vm::table::Table;

/// The tiers; any other last part of a test's name is the test's own.
const TIERS: [&str; 3] = ["ebpf", "netlink", "poll"];

/// The themes with modules of their own; any other one is the first part of a test's name.
const PARENTS: [&str; 2] = ["kernel", "systemd"];

#[derive(Debug, Default)]
struct Cell {
    passed: usize,
    excepted: usize,
    failed: usize,
}

/// Enters what a harness printed into the column `kernel`; `excepted` are tests that failed as they should.
pub(crate) fn enter(
    table: &mut Table,
    kernel: &str,
    situation: &str,
    lines: &[String],
    excepted: &BTreeSet<&str>,
) {
    let mut cells: BTreeMap<String, Cell> = BTreeMap::new();
    for line in lines {
        let Some((test, verdict)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
        else {
            continue;
        };
        let cell = cells.entry(theme(test)).or_default();
        match verdict {
            "ok" => cell.passed += 1,
            "FAILED" if excepted.contains(test) => cell.excepted += 1,
            "FAILED" => cell.failed += 1,
            _ => {}
        }
    }
    for (theme, Cell { passed, excepted, failed }) in cells {
        let mut words = vec![format!("{passed} ok")];
        words.extend((excepted > 0).then(|| format!("{excepted} excepted")));
        words.extend((failed > 0).then(|| format!("{failed} FAILED")));
        table.set(&format!("{theme}{situation}"), kernel, &words.join(", "));
    }
}

/// `evicting::time_wait_of_strict::poll` → `evicting, poll`.
fn theme(test: &str) -> String {
    let parts: Vec<&str> = test.split("::").collect();
    let depth = if parts.first().is_some_and(|first| PARENTS.contains(first)) { 2 } else { 1 };
    let module = parts[..depth.min(parts.len())].join("::");
    match parts.last() {
        Some(tier) if TIERS.contains(tier) => format!("{module}, {tier}"),
        _ => module,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_theme_is_one_cell_and_a_failure_is_seen_in_it() {
        let lines = [
            "test evicting::one::poll ... ok",
            "test evicting::two::poll ... FAILED",
            "test evicting::two::ebpf ... FAILED",
            "test kernel::bpf::tests::x ... ok",
            "test result: FAILED. 2 passed; 2 failed",
        ];
        let mut table = Table::default();
        let excepted = BTreeSet::from(["evicting::two::poll"]);
        enter(&mut table, "5.10", ", locked", &lines.map(str::to_owned), &excepted);
        assert_eq!(table.get("evicting, poll, locked", "5.10"), Some("1 ok, 1 excepted"));
        assert_eq!(table.get("evicting, ebpf, locked", "5.10"), Some("0 ok, 1 FAILED"));
        assert_eq!(table.get("kernel::bpf, locked", "5.10"), Some("1 ok"));
    }
}
