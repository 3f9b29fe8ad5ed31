//! Tables for a person: on a terminal, and in Markdown.

use super::distribution::Distribution;
use super::growth;
use super::record::{Record, Row, portguard_first};

/// Rows of cells; the first row is the heading.
pub(crate) type Cells = Vec<Vec<String>>;

/// One table per scenario and measure, with its title.
pub(crate) fn tables(record: &Record) -> Vec<(String, Cells)> {
    let mut tables = Vec::new();
    for scenario in record.distinct(|row| &row.scenario) {
        tables.extend(growth::tables(record, scenario));
        let here = |row: &&Row| row.scenario == scenario && row.at.is_none();
        let mut measures: Vec<(&str, &str)> = Vec::new();
        for row in record.rows.iter().filter(here).filter(|row| row.unit != "yes") {
            if !measures.contains(&(&row.measure, &row.unit)) {
                measures.push((&row.measure, &row.unit));
            }
        }
        // Somebody who never succeeded has shares only, and is shown with them all the same.
        let only_shares: Vec<&str> = subjects(record, scenario, |row| row.unit == "yes")
            .into_iter()
            .filter(|&subject| {
                !record.rows.iter().filter(here).any(|row| row.subject == subject && row.unit != "yes")
            })
            .collect();
        for (index, (measure, unit)) in measures.iter().enumerate() {
            let mut subjects = subjects(record, scenario, |row| row.measure == *measure && row.at.is_none());
            if index == 0 {
                subjects.extend(&only_shares);
            }
            subjects.sort_by_key(|subject| portguard_first(subject));
            let shares = if index == 0 { shares(record, scenario, &subjects) } else { Vec::new() };
            let cells = cells(record, scenario, measure, unit, &subjects, &shares);
            tables.push((format!("{scenario}: {measure}"), cells));
        }
    }
    tables
}

fn subjects<'a>(record: &'a Record, scenario: &str, which: impl Fn(&Row) -> bool) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for row in record.rows.iter().filter(|row| row.scenario == scenario && which(row)) {
        if !seen.contains(&row.subject.as_str()) {
            seen.push(&row.subject);
        }
    }
    seen
}

fn shares<'a>(record: &'a Record, scenario: &str, subjects: &[&str]) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for row in &record.rows {
        let counts =
            row.scenario == scenario && row.unit == "yes" && subjects.contains(&row.subject.as_str());
        if counts && !seen.contains(&row.measure.as_str()) {
            seen.push(&row.measure);
        }
    }
    seen
}

fn cells(
    record: &Record,
    scenario: &str,
    measure: &str,
    unit: &str,
    subjects: &[&str],
    shares: &[&str],
) -> Cells {
    let mut heading: Vec<String> = ["", "n", "min", "p50", "p90", "p99", "max"].map(str::to_owned).into();
    heading.extend(shares.iter().map(|&share| share.to_owned()));
    let mut cells = vec![heading];
    for &subject in subjects {
        let seen = record.find(scenario, measure, subject).and_then(|row| Distribution::of(&row.samples));
        let mut line = vec![subject.to_owned(), seen.map_or(0, |seen| seen.count).to_string()];
        match seen {
            Some(seen) => line.extend(
                seen.columns().map(|(_, value)| value.map_or_else(|| "–".to_owned(), |v| number(v, unit))),
            ),
            None => line.extend((0..5).map(|_| "–".to_owned())),
        }
        for share in shares {
            line.push(record.find(scenario, share, subject).map_or_else(String::new, share_of));
        }
        cells.push(line);
    }
    cells
}

/// `3 of 20`
pub(crate) fn share_of(row: &Row) -> String {
    let yes = row.samples.iter().filter(|&&value| value > 0.0).count();
    format!("{yes} of {}", row.samples.len())
}

/// A number of this unit: three digits that count, and a span with the unit that suits it.
pub(crate) fn number(value: f64, unit: &str) -> String {
    let (scaled, suffix) = match unit {
        "ns" => match value.abs() {
            size if size >= 999_500_000.0 => (value / 1e9, " s"),
            size if size >= 999_500.0 => (value / 1e6, " ms"),
            _ => (value / 1e3, " µs"),
        },
        "ns each" => (value, " ns"),
        "bytes" => (value / 1_048_576.0, " MiB"),
        "seconds" => (value, " s"),
        _ => (value, ""),
    };
    if unit == "number" {
        return format!("{scaled}");
    }
    if unit == "ratio" {
        return format!("{scaled:.4}");
    }
    let decimals = match scaled.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{scaled:.decimals$}");
    // Nothing is not less than nothing.
    let nothing = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
    format!("{}{suffix}", if nothing { text.trim_start_matches('-') } else { &text })
}

/// Columns in line, for a terminal.
pub(crate) fn plain(cells: &Cells) -> String {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in cells {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The same as a Markdown table, numbers to the right.
pub(crate) fn markdown(cells: &Cells) -> String {
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            let rule: Vec<&str> =
                (0..row.len()).map(|column| if column == 0 { "---" } else { "---:" }).collect();
            text.push_str(&format!("|{}|\n", rule.join("|")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new("release");
        let row = |subject: &str, measure: &str, unit: &str, samples: &[f64]| Row {
            scenario: "idle".into(),
            measure: measure.into(),
            subject: subject.into(),
            at: None,
            unit: unit.into(),
            samples: samples.to_vec(),
        };
        record.rows = vec![
            row("portguard gate", "delay", "ns", &[5_000.0, 15_000.0]),
            row("portguard gate", "free too early", "yes", &[0.0, 0.0]),
            row("peer", "delay", "ns", &[-2e9]),
            row("peer", "free too early", "yes", &[1.0]),
            row("broken", "failed", "yes", &[1.0]),
        ];
        record
    }

    #[test]
    fn everybody_is_in_the_table_also_who_never_succeeded() {
        let tables = tables(&record());
        assert_eq!(tables.len(), 1);
        let (title, cells) = &tables[0];
        assert_eq!(title, "idle: delay");
        assert_eq!(cells[0], ["", "n", "min", "p50", "p90", "p99", "max", "free too early", "failed"]);
        assert_eq!(
            cells[1],
            ["portguard gate", "2", "5.00 µs", "5.00 µs", "–", "–", "15.0 µs", "0 of 2", ""]
        );
        assert_eq!(cells[3], ["peer", "1", "-2.00 s", "-2.00 s", "–", "–", "-2.00 s", "1 of 1", ""]);
        assert_eq!(cells[2], ["broken", "0", "–", "–", "–", "–", "–", "", "1 of 1"]);
    }

    #[test]
    fn a_table_has_straight_columns() {
        let cells = vec![vec!["".into(), "n".into()], vec!["gate".into(), "10".into()]];
        assert_eq!(plain(&cells), "       n\ngate  10\n");
        assert_eq!(markdown(&cells), "|  | n |\n|---|---:|\n| gate | 10 |\n");
    }

    #[test]
    fn numbers_show_what_counts() {
        assert_eq!(number(12_345.0, "ns"), "12.3 µs");
        assert_eq!(number(1_234_567_890.0, "ns"), "1.23 s");
        assert_eq!(number(999_700.0, "ns"), "1.00 ms");
        assert_eq!(number(-1.0, "ns"), "0.00 µs");
        assert_eq!(number(11_534_336.0, "bytes"), "11.0 MiB");
        assert_eq!(number(0.99123, "ratio"), "0.9912");
        assert_eq!(number(3.0, "number"), "3");
    }
}
