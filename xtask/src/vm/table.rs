//! The table of features per kernel: what is expected, what a guest's `portguard doctor` found, and where they differ.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The expected table, a page for people too.
pub(crate) const PAGE: &str = "tests/vm/FEATURES.md";

/// Features, and for each kernel series the answer.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<(String, BTreeMap<String, String>)>,
}

impl Table {
    /// Reads the table of a page: the first column is the feature, the others are kernels.
    ///
    /// # Errors
    ///
    /// When there is no table, or a row has another number of cells than the heading.
    pub(crate) fn parse(page: &str) -> Result<Self> {
        let mut lines = page.lines().filter_map(cells);
        let heading = lines.next().with_context(|| format!("{PAGE} has no table"))?;
        let mut rows = Vec::new();
        for row in lines.filter(|row| !row[0].starts_with("---")) {
            if row.len() != heading.len() {
                bail!("{PAGE}: the row of {} has {} cells, not {}", row[0], row.len(), heading.len());
            }
            let answers = heading.iter().zip(&row).skip(1);
            let answers = answers.map(|(kernel, answer)| ((*kernel).to_owned(), (*answer).to_owned()));
            rows.push((row[0].to_owned(), answers.collect()));
        }
        Ok(Self { rows })
    }

    fn expected(&self, feature: &str, kernel: &str) -> Option<&str> {
        let (_, answers) = self.rows.iter().find(|(name, _)| name == feature)?;
        answers.get(kernel).map(String::as_str)
    }

    /// Every cell in which a kernel differs from what is expected of it, in words. Better than expected
    /// is a difference too: then the table is wrong.
    pub(crate) fn differences(&self, kernel: &str, found: &[Found]) -> Vec<String> {
        let mut differences = Vec::new();
        for Found { feature, answer, because } in found {
            let because = because.as_deref().map(|because| format!(" ({because})")).unwrap_or_default();
            match self.expected(feature, kernel) {
                Some(expected) if expected == answer => {}
                Some(expected) => {
                    differences
                        .push(format!("{feature} on {kernel} is {answer}{because}, {PAGE} says {expected}"));
                }
                None => differences
                    .push(format!("{feature} on {kernel} is {answer}{because}, {PAGE} has no such cell")),
            }
        }
        for (feature, answers) in &self.rows {
            if answers.contains_key(kernel) && !found.iter().any(|found| found.feature == *feature) {
                differences.push(format!("{feature} on {kernel} was not told, but it is in {PAGE}"));
            }
        }
        differences
    }
}

/// One answer of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The feature.
    pub(crate) feature: String,
    /// `yes`, `no`, `could_not_tell`, or the name of a tier or of a way to attach.
    pub(crate) answer: String,
    /// Why, when it is not `yes`.
    pub(crate) because: Option<String>,
}

/// Reads what `portguard doctor --json` printed.
///
/// # Errors
///
/// When it printed something else.
pub(crate) fn answers(lines: &[String]) -> Result<Vec<Found>> {
    let report = lines.iter().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.with_context(|| format!("doctor printed no JSON: {}", lines.join(" ")))?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let found = |feature: &str, answer: Option<String>, because| Found {
        feature: feature.to_owned(),
        answer: answer.unwrap_or_else(|| "none".to_owned()),
        because,
    };
    let losses: Vec<String> = report["losses"].as_array().into_iter().flatten().filter_map(text).collect();
    let complete = if losses.is_empty() { "yes" } else { "no" };
    let mut all = vec![
        found("tier", text(&report["tier"]), text(&report["why_not_ebpf"])),
        found("attached by", text(&report["attached_by"]), None),
        found("nothing lost", Some(complete.into()), (!losses.is_empty()).then(|| losses.join("; "))),
    ];
    for feature in report["features"].as_array().context("doctor's report has no features")? {
        let name = feature["name"].as_str().context("a feature without a name")?;
        all.push(found(name, text(&feature["answer"]), text(&feature["because"])));
    }
    Ok(all)
}

/// Kernel × feature × answer, in the form of the page.
pub(crate) fn picture(kernels: &[(String, Vec<Found>)]) -> String {
    let mut features: Vec<&str> = Vec::new();
    for found in kernels.iter().flat_map(|(_, found)| found) {
        if !features.contains(&found.feature.as_str()) {
            features.push(&found.feature);
        }
    }
    let mut rows = vec![line("feature", kernels.iter().map(|(kernel, _)| kernel.as_str()))];
    rows.push("|---".repeat(kernels.len() + 1) + "|");
    for feature in features {
        let answer = |found: &'_ [Found]| {
            found.iter().find(|found| found.feature == feature).map_or("", |found| &found.answer).to_owned()
        };
        let answers: Vec<String> = kernels.iter().map(|(_, found)| answer(found)).collect();
        rows.push(line(feature, answers.iter().map(String::as_str)));
    }
    rows.join("\n")
}

fn line<'a>(first: &str, others: impl Iterator<Item = &'a str>) -> String {
    others.fold(format!("| {first} |"), |line, cell| format!("{line} {cell} |"))
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(row.split('|').map(str::trim).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "Words.\n\n| feature | 5.10 | 7.2 |\n|---|---|---|\n| btf | yes | yes |\n| new | no | yes |\n";

    fn found(feature: &str, answer: &str) -> Found {
        Found { feature: feature.into(), answer: answer.into(), because: None }
    }

    #[test]
    fn a_difference_in_either_direction_is_told() {
        let table = Table::parse(TABLE).unwrap();
        assert!(table.differences("5.10", &[found("btf", "yes"), found("new", "no")]).is_empty());
        assert_eq!(table.differences("5.10", &[found("btf", "no"), found("new", "no")]).len(), 1);
        assert_eq!(table.differences("5.10", &[found("btf", "yes"), found("new", "yes")]).len(), 1);
    }

    #[test]
    fn a_cell_that_is_missing_on_either_side_is_told() {
        let table = Table::parse(TABLE).unwrap();
        assert_eq!(table.differences("7.2", &[found("btf", "yes")]).len(), 1);
        let more = [found("btf", "yes"), found("new", "yes"), found("newer", "yes")];
        assert_eq!(table.differences("7.2", &more).len(), 1);
        assert_eq!(table.differences("6.1", &[found("btf", "yes")]).len(), 1);
    }

    #[test]
    fn a_picture_can_be_read_back() {
        let kernels = [("5.10".to_owned(), vec![found("btf", "yes"), found("new", "no")])];
        let table = Table::parse(&picture(&kernels)).unwrap();
        assert!(table.differences("5.10", &kernels[0].1).is_empty());
    }

    #[test]
    fn doctor_s_report_is_read() {
        let report = r#"{"tier":"ebpf","why_not_ebpf":null,"attached_by":"raw","losses":["x: y"],
            "features":[{"name":"btf","answer":"no","because":"old"}]}"#;
        let answers = answers(&[report.replace('\n', "")]).unwrap();
        assert_eq!(answers[0], found("tier", "ebpf"));
        assert_eq!(answers[2].answer, "no");
        assert_eq!(answers[3].because.as_deref(), Some("old"));
    }
}
