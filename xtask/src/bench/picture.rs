//! Pictures of a record, as SVG: a cumulative distribution of each table of spans, and curves of growth.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::chart::SeriesLabelPosition;
use plotters::prelude::*;

use super::growth::{self, Curves};
use super::record::{Record, Row, portguard_first};
use super::table::number;
use super::timeline;

/// Wide enough for a legend beside a long tail.
const SIZE: (u32, u32) = (960, 480);

/// Colours that are told apart on white by most eyes (after Okabe and Ito), then grey.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(130, 130, 130),
];

/// Nothing on a logarithmic axis is less than this: 1 µs.
const LEAST_NS: f64 = 1_000.0;

/// Every subject looks different: when the colours are used up, they come again as broad, pale lines.
fn line_style(index: usize) -> ShapeStyle {
    let colour = COLOURS[index % COLOURS.len()];
    match index / COLOURS.len() {
        0 => ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: 2 },
        1 => ShapeStyle { color: colour.mix(0.45), filled: false, stroke_width: 5 },
        _ => ShapeStyle { color: colour.mix(0.25), filled: false, stroke_width: 9 },
    }
}

/// Draws what a record has to show; returns the files.
///
/// # Errors
///
/// When a file cannot be written.
pub(crate) fn draw(record: &Record, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for curves in growth::curves(record) {
        let file = folder.join(file_name(&[&record.section, curves.scenario, curves.measure]));
        curves_of_growth(&file, &curves)?;
        files.push(file);
    }
    for scenario in record.distinct(|row| &row.scenario) {
        let file = folder.join(file_name(&[&record.section, scenario, "timeline"]));
        if timeline::draw(record, scenario, &file)? {
            files.push(file);
        }
        for measure in record.distinct(|row| &row.measure) {
            let mut rows: Vec<&Row> = record
                .rows
                .iter()
                .filter(|row| {
                    row.scenario == scenario && row.measure == measure && row.unit == "ns" && row.at.is_none()
                })
                .collect();
            if rows.is_empty() {
                continue;
            }
            rows.sort_by_key(|row| portguard_first(&row.subject));
            let file = folder.join(file_name(&[&record.section, scenario, measure]));
            cumulative(&file, &format!("{scenario}: {measure}"), &rows)?;
            files.push(file);
        }
    }
    Ok(files)
}

/// A name for a file out of titles.
fn file_name(parts: &[&str]) -> String {
    let mut name = String::new();
    for c in parts.join(" ").chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    format!("{}.svg", name.trim_matches('-'))
}

/// Which share of the samples is at most so long. What is negative stands at the left edge.
fn cumulative(file: &Path, title: &str, rows: &[&Row]) -> Result<()> {
    let most = rows.iter().flat_map(|row| &row.samples).fold(LEAST_NS * 10.0, |most, &value| most.max(value));
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(drawing)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((LEAST_NS..most * 1.5).log_scale(), 0.0..100.0)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|ns| number(*ns, "ns"))
        .y_label_formatter(&|share| format!("{share:.0} %"))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing)?;
    for (index, row) in rows.iter().enumerate() {
        let style = line_style(index);
        chart
            .draw_series(LineSeries::new(steps(&row.samples), style))
            .map_err(drawing)?
            .label(&row.subject)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(drawing)?;
    area.present().map_err(drawing)
}

/// Medians over the size, both on logarithmic axes; a size of 0 stands at the left edge.
fn curves_of_growth(file: &Path, curves: &Curves<'_>) -> Result<()> {
    let points = || curves.curves.iter().flat_map(|(_, points)| points);
    let widest = points().fold(10.0_f64, |most, point| most.max(point.0));
    let least = points().fold(f64::MAX, |least, point| least.min(point.1)).max(LEAST_NS);
    let most = points().fold(LEAST_NS * 10.0, |most, point| most.max(point.1));
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(drawing)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{}: {}, median", curves.scenario, curves.measure), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..widest).log_scale(), (least / 2.0..most * 2.0).log_scale())
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .x_desc("N")
        .y_label_formatter(&|ns| number(*ns, "ns"))
        .light_line_style(WHITE)
        .draw()
        .map_err(drawing)?;
    for (index, (subject, points)) in curves.curves.iter().enumerate() {
        let style = line_style(index);
        let points = points.iter().map(|&(at, median)| (at.max(1.0), median.max(LEAST_NS)));
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(drawing)?
            .label(*subject)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(drawing)?;
    area.present().map_err(drawing)
}

/// The corners of the staircase.
fn steps(samples: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<f64> = samples.iter().map(|value| value.max(LEAST_NS)).collect();
    sorted.sort_by(f64::total_cmp);
    let share = |count: usize| 100.0 * count as f64 / sorted.len() as f64;
    let corners = |(index, &value): (usize, &f64)| [(value, share(index)), (value, share(index + 1))];
    sorted.iter().enumerate().flat_map(corners).collect()
}

/// plotters' errors carry the backend's type, which nobody needs to know.
pub(super) fn drawing(error: impl Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_after_its_table() {
        assert_eq!(
            file_name(&["release", "1 MB, queue 0, idle", "bindable → says so"]),
            "release-1-mb-queue-0-idle-bindable-says-so.svg"
        );
    }

    #[test]
    fn a_staircase_ends_at_the_top() {
        assert_eq!(steps(&[5e6, -1.0]), [(1e3, 0.0), (1e3, 50.0), (5e6, 50.0), (5e6, 100.0)]);
    }
}
