//! What one section measured: from the measuring program's lines to rows, and as a JSON file.

use serde_json::{Value, json};

use super::distribution::Distribution;

/// The version of the JSON files.
const VERSION: u32 = 1;

/// The samples of one subject in one scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Under which circumstances.
    pub(crate) scenario: String,
    /// What of it.
    pub(crate) measure: String,
    /// Who.
    pub(crate) subject: String,
    /// The size at this point of a curve; `None` of what does not grow.
    pub(crate) at: Option<f64>,
    /// `ns`, `bytes`, `seconds`, `ratio`, `per second`, `number`, or `yes` for shares.
    pub(crate) unit: String,
    /// In the order in which they were taken.
    pub(crate) samples: Vec<f64>,
}

/// Sorts subjects as a reader looks for them: portguard first, then by name. They were measured in an
/// order that every round shuffled.
pub(crate) fn portguard_first(subject: &str) -> (bool, &str) {
    (!subject.starts_with("portguard"), subject)
}

/// Everything that one section said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// The section's name.
    pub(crate) section: String,
    /// In the order of first appearance.
    pub(crate) rows: Vec<Row>,
    /// What a reader has to know.
    pub(crate) notes: Vec<String>,
    /// What could not be measured, and why.
    pub(crate) absent: Vec<(String, String)>,
}

/// What a line was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It is in the record now.
    Kept,
    /// For the person who waits.
    Progress(String),
    /// Not a line of the measuring program.
    Other,
}

impl Record {
    /// An empty record.
    pub(crate) fn new(section: &str) -> Self {
        Self { section: section.to_owned(), ..Self::default() }
    }

    /// Takes in one line of the measuring program.
    pub(crate) fn take(&mut self, line: &str) -> Line {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return Line::Other };
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        match value["kind"].as_str() {
            Some("sample") => {
                let Some(number) = value["value"].as_f64() else { return Line::Other };
                let (scenario, measure) = (text("scenario"), text("measure"));
                let (subject, unit) = (text("subject"), text("unit"));
                self.row(&scenario, &measure, &subject, value["at"].as_f64(), &unit).samples.push(number);
                Line::Kept
            }
            Some("note") => {
                self.notes.push(text("text"));
                Line::Kept
            }
            Some("absent") => {
                self.absent.push((text("what"), text("why")));
                Line::Kept
            }
            Some("progress") => Line::Progress(text("text")),
            _ => Line::Other,
        }
    }

    fn row(&mut self, scenario: &str, measure: &str, subject: &str, at: Option<f64>, unit: &str) -> &mut Row {
        let same = |row: &Row| {
            row.scenario == scenario && row.measure == measure && row.subject == subject && row.at == at
        };
        let index = self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(Row {
                scenario: scenario.to_owned(),
                measure: measure.to_owned(),
                subject: subject.to_owned(),
                at,
                unit: unit.to_owned(),
                samples: Vec::new(),
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// The values of one column of the rows, each once, in order of appearance.
    pub(crate) fn distinct<'a>(&'a self, column: impl Fn(&'a Row) -> &'a str) -> Vec<&'a str> {
        let mut seen = Vec::new();
        for row in &self.rows {
            if !seen.contains(&column(row)) {
                seen.push(column(row));
            }
        }
        seen
    }

    /// The row of this subject, if it was measured.
    pub(crate) fn find(&self, scenario: &str, measure: &str, subject: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.scenario == scenario && row.measure == measure && row.subject == subject)
    }

    /// The file of this section: every sample, so that somebody else can draw other conclusions.
    pub(crate) fn to_json(&self, about: &Value) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let seen = Distribution::of(&row.samples);
                json!({
                    "scenario": row.scenario,
                    "measure": row.measure,
                    "subject": row.subject,
                    "at": row.at,
                    "unit": row.unit,
                    "count": row.samples.len(),
                    "min": seen.map(|seen| seen.min),
                    "p50": seen.map(|seen| seen.p50),
                    "p90": seen.map(|seen| seen.p90),
                    "p99": seen.map(|seen| seen.p99),
                    "max": seen.map(|seen| seen.max),
                    "samples": row.samples,
                })
            })
            .collect();
        let absent: Vec<Value> =
            self.absent.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
        json!({
            "v": VERSION,
            "section": self.section,
            "about": about,
            "notes": self.notes,
            "absent": absent,
            "rows": rows,
        })
    }

    /// Reads such a file back. `None` when it is not one of this version.
    pub(crate) fn from_json(file: &Value) -> Option<Self> {
        if file["v"].as_u64() != Some(u64::from(VERSION)) {
            return None;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut record = Self::new(file["section"].as_str()?);
        for row in file["rows"].as_array()? {
            record.rows.push(Row {
                scenario: text(&row["scenario"])?,
                measure: text(&row["measure"])?,
                subject: text(&row["subject"])?,
                at: row["at"].as_f64(),
                unit: text(&row["unit"])?,
                samples: row["samples"].as_array()?.iter().filter_map(Value::as_f64).collect(),
            });
        }
        record.notes = file["notes"].as_array()?.iter().filter_map(text).collect();
        for absent in file["absent"].as_array()? {
            record.absent.push((text(&absent["what"])?, text(&absent["why"])?));
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(subject: &str, value: i32) -> String {
        json!({
            "kind": "sample", "section": "s", "scenario": "idle", "subject": subject,
            "measure": "m", "unit": "ns", "value": value,
        })
        .to_string()
    }

    #[test]
    fn interleaved_samples_become_one_row_each() {
        let mut record = Record::new("s");
        for line in [sample("b", 1), sample("a", 2), sample("b", 3)] {
            assert_eq!(record.take(&line), Line::Kept);
        }
        assert_eq!(record.distinct(|row| &row.subject), ["b", "a"]);
        assert_eq!(record.find("idle", "m", "b").unwrap().samples, [1.0, 3.0]);
        assert_eq!(record.take("warning: not ours"), Line::Other);
        assert_eq!(record.take(r#"{"kind":"progress","text":"round 1"}"#), Line::Progress("round 1".into()));
    }

    #[test]
    fn a_file_reads_back_as_it_was() {
        let mut record = Record::new("s");
        record.take(&sample("a", -2));
        record.take(&sample("a", 3).replace("\"measure\"", "\"at\":10,\"measure\""));
        assert_eq!(record.rows.len(), 2);
        record.take(r#"{"kind":"absent","what":"lsof","why":"not there"}"#);
        record.take(r#"{"kind":"note","text":"n"}"#);
        let file = record.to_json(&json!({}));
        assert_eq!(Record::from_json(&file), Some(record));
        assert_eq!(Record::from_json(&json!({ "v": 0 })), None);
    }
}
