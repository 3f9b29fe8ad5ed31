//! The table for the README, out of the files of the last run.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::record::Record;
use super::table::{self, Cells};

/// A record and what its file says about the run.
#[derive(Debug)]
pub(crate) struct Kept {
    record: Record,
    machine: String,
    disturbed: Option<String>,
    quick: bool,
}

/// Columns that only the JSON files and the terminal show.
const LEFT_OUT: [&str; 2] = ["min", "p90"];

/// The tables of the README, by section and the beginning of their titles; the rest is in the JSON files.
const CHOSEN: &[(&str, &str)] = &[
    ("release", "killed, 1 MB, queue 0, idle:"),
    ("release", "killed, 500 MB, queue 0, idle:"),
    ("restart", "polite, 1 MB, nobody spins: total"),
    ("restart", "polite: up"),
    ("host", "connections: throughput"),
    ("host", "BPF programs: time per run"),
    ("idle", "waiting for a port that stays taken: processor time"),
    ("idle", "a sidecar to which nothing happens: wake-ups"),
    ("idle", "a sidecar to which nothing happens: resident"),
    ("idle", "start-up"),
    ("scale", "owner of a listener"),
    ("scale", "N services restarted at once: first"),
];

/// Reads what the last run of each section left behind.
///
/// # Errors
///
/// When there is nothing, or a file is not what this program writes.
pub(crate) fn records(folder: &Path, sections: &[&str]) -> Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for section in sections {
        let path = folder.join(format!("{section}.json"));
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let file: Value =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        let record = Record::from_json(&file)
            .with_context(|| format!("{} is of another version: measure again", path.display()))?;
        let machine = &file["about"]["machine"];
        kept.push(Kept {
            record,
            machine: machine["line"].as_str().unwrap_or("an unknown machine").to_owned(),
            disturbed: machine["disturbed"].as_str().map(str::to_owned),
            quick: file["about"]["quick"] == true,
        });
    }
    if kept.is_empty() {
        bail!("nothing was measured yet: run `cargo xtask bench` first");
    }
    Ok(kept)
}

/// The text.
pub(crate) fn markdown(all: &[Kept]) -> String {
    let mut text = String::new();
    let mut machine = "";
    for kept in all {
        if kept.machine != machine {
            machine = &kept.machine;
            text.push_str(&format!("Measured {machine}.\n\n"));
        }
        let warnings = [
            kept.disturbed.as_ref().map(|why| format!("**Not for publication: {why}.**\n\n")),
            kept.quick.then(|| "(From a quick run: few samples.)\n\n".to_owned()),
        ];
        for warning in warnings.into_iter().flatten() {
            if !text.contains(&warning) {
                text.push_str(&warning);
            }
        }
        let section = kept.record.section.as_str();
        let chosen =
            |title: &str| CHOSEN.iter().any(|&(name, begins)| name == section && title.starts_with(begins));
        for (title, cells) in table::tables(&kept.record).into_iter().filter(|(title, _)| chosen(title)) {
            text.push_str(&format!("{title}:\n\n{}\n", table::markdown(&narrow(&cells))));
        }
    }
    text.push_str("Printed by `cargo xtask bench --readme` after `cargo xtask bench`.\n");
    text
}

/// Only the columns of a README; shares always are.
fn narrow(cells: &Cells) -> Cells {
    let Some(heading) = cells.first() else { return Vec::new() };
    cells
        .iter()
        .map(|row| {
            let cell =
                |(cell, name): (&String, &String)| (!LEFT_OUT.contains(&name.as_str())).then(|| cell.clone());
            row.iter().zip(heading).filter_map(cell).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_says_on_what_and_whether_it_may_be_published() {
        let mut record = Record::new("idle");
        record.take(
            r#"{"kind":"sample","scenario":"start-up","measure":"m","subject":"gate","unit":"number","value":7}"#,
        );
        let kept = |disturbed: Option<&str>| Kept {
            record: record.clone(),
            machine: "one day, Linux 6.18".to_owned(),
            disturbed: disturbed.map(str::to_owned),
            quick: false,
        };
        let text = markdown(&[kept(None), kept(None)]);
        assert_eq!(text.matches("Measured one day, Linux 6.18.").count(), 1, "{text}");
        assert!(text.contains("| gate | 1 | 7 |"), "{text}");
        assert!(!text.contains("Not for publication"), "{text}");
        assert!(markdown(&[kept(Some("busy"))]).contains("Not for publication: busy"));
    }

    #[test]
    fn the_readme_shows_fewer_columns() {
        let cells: Cells = vec![
            ["", "n", "min", "p50", "p90", "p99", "max", "free too early"].map(str::to_owned).into(),
            ["gate", "9", "1", "2", "3", "4", "5", "0 of 9"].map(str::to_owned).into(),
        ];
        assert_eq!(narrow(&cells)[1], ["gate", "9", "2", "4", "5", "0 of 9"]);
    }
}
