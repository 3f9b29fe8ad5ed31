//! Pictures of whole restarts: until when the port was held, and for how long it then lay idle.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::distribution::Distribution;
use super::picture::drawing;
use super::record::{Record, portguard_first};

/// While the old listener holds the port.
const HELD: RGBColor = RGBColor(190, 190, 190);
/// From bindable until the tool knows it.
const DEAD: RGBColor = RGBColor(213, 94, 0);
/// From then until the successor listens.
const STARTING: RGBColor = RGBColor(0, 158, 115);

const WIDTH: u32 = 960;
const ROW: u32 = 24;
const LABELS: u32 = 300;

/// The medians of one subject, in seconds from the start of the tool.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    bindable: f64,
    said: f64,
    up: f64,
}

/// Draws one picture of a kind of listener, if it was measured.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn draw(record: &Record, kind: &str, file: &Path) -> Result<bool> {
    let mut spans: Vec<(&str, Span)> = record
        .distinct(|row| &row.subject)
        .into_iter()
        .filter_map(|subject| Some((subject, span(record, kind, subject)?)))
        .collect();
    spans.sort_by_key(|(subject, _)| portguard_first(subject));
    if spans.is_empty() {
        return Ok(false);
    }
    let rows = u32::try_from(spans.len())?;
    let area = SVGBackend::new(file, (WIDTH, ROW * (rows + 3))).into_drawing_area();
    area.fill(&WHITE).map_err(drawing)?;
    let title =
        format!("{kind} listener: port held (grey), dead time (orange), successor starts (green); medians");
    let text = |size: u32| ("sans-serif", size).into_font();
    area.draw(&Text::new(title, (12, 8), text(16))).map_err(drawing)?;
    let longest = spans.iter().fold(0.001_f64, |most, (_, span)| most.max(span.up).max(span.said));
    let x = |seconds: f64| (f64::from(LABELS) + seconds / longest * f64::from(WIDTH - LABELS - 90)) as i32;
    for (row, (subject, span)) in (1_i32..).zip(&spans) {
        let top = row * ROW as i32 + 12;
        area.draw(&Text::new((*subject).to_owned(), (12, top + 2), text(13))).map_err(drawing)?;
        let bar = |from: f64, to: f64, colour: RGBColor| {
            let corners = [(x(from), top), (x(to.max(from)), top + ROW as i32 - 7)];
            area.draw(&Rectangle::new(corners, colour.filled())).map_err(drawing)
        };
        bar(0.0, span.bindable, HELD)?;
        bar(span.bindable, span.said, DEAD)?;
        bar(span.said.max(span.bindable), span.up, STARTING)?;
        let end = format!("{:.0} ms", span.up.max(span.said) * 1e3);
        area.draw(&Text::new(end, (x(span.up.max(span.said)) + 6, top + 2), text(13))).map_err(drawing)?;
    }
    area.present().map_err(drawing)?;
    Ok(true)
}

/// `None` of somebody who was not measured, or whose successor never listened.
fn span(record: &Record, kind: &str, subject: &str) -> Option<Span> {
    let median = |measure: &str| {
        let row = record.find(kind, measure, subject)?;
        Some(Distribution::of(&row.samples)?.p50 / 1e9)
    };
    let (bindable, dead, up) = (median("bindable")?, median("dead time")?, median("up")?);
    Some(Span { bindable, said: bindable + dead, up })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Row;

    #[test]
    fn a_span_needs_a_successor_that_listens() {
        let row = |measure: &str, value: f64| Row {
            scenario: "polite".into(),
            measure: measure.into(),
            subject: "tool".into(),
            at: None,
            unit: "ns".into(),
            samples: vec![value],
        };
        let mut record = Record::new("restart");
        record.rows = vec![row("bindable", 1e9), row("dead time", 5e8)];
        assert_eq!(span(&record, "polite", "tool"), None);
        record.rows.push(row("up", 2e9));
        assert_eq!(span(&record, "polite", "tool"), Some(Span { bindable: 1.0, said: 1.5, up: 2.0 }));
        assert_eq!(span(&record, "stubborn", "tool"), None);
    }
}
