//! Curves: how a median grows with a size, and what that growth is called.

use super::distribution::Distribution;
use super::record::{Record, portguard_first};
use super::table::{Cells, number};

/// The curves of one measure, one per subject.
#[derive(Debug)]
pub(crate) struct Curves<'a> {
    /// What grows, and under which circumstances.
    pub(crate) scenario: &'a str,
    /// What of it.
    pub(crate) measure: &'a str,
    unit: &'a str,
    /// Each subject with its points: size and median, by size.
    pub(crate) curves: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// Everything in a record that grows.
pub(crate) fn curves(record: &Record) -> Vec<Curves<'_>> {
    let mut all: Vec<Curves<'_>> = Vec::new();
    for row in &record.rows {
        let (Some(at), Some(seen)) = (row.at, Distribution::of(&row.samples)) else { continue };
        let same = |curves: &Curves<'_>| curves.scenario == row.scenario && curves.measure == row.measure;
        let index = all.iter().position(same).unwrap_or_else(|| {
            let (scenario, measure, unit) = (&row.scenario, &row.measure, &row.unit);
            all.push(Curves { scenario, measure, unit, curves: Vec::new() });
            all.len() - 1
        });
        let curves = &mut all[index].curves;
        let place = curves.iter().position(|(subject, _)| *subject == row.subject).unwrap_or_else(|| {
            curves.push((&row.subject, Vec::new()));
            curves.len() - 1
        });
        let points = &mut curves[place].1;
        points.push((at, seen.p50));
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    for curves in &mut all {
        curves.curves.sort_by_key(|(subject, _)| portguard_first(subject));
    }
    all
}

/// One table per measure of a scenario: medians by size, and how they grow at the end.
pub(crate) fn tables(record: &Record, scenario: &str) -> Vec<(String, Cells)> {
    let here = curves(record).into_iter().filter(|curves| curves.scenario == scenario);
    here.map(|curves| (format!("{scenario}: {}, median", curves.measure), cells(&curves))).collect()
}

fn cells(curves: &Curves<'_>) -> Cells {
    let mut sizes: Vec<f64> =
        curves.curves.iter().flat_map(|(_, points)| points).map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let mut heading = vec![String::new()];
    heading.extend(sizes.iter().map(|size| format!("N = {size}")));
    heading.push("growth at the end".to_owned());
    let mut cells = vec![heading];
    for (subject, points) in &curves.curves {
        let mut line = vec![(*subject).to_owned()];
        for size in &sizes {
            let median = points.iter().find(|point| point.0 == *size).map(|point| point.1);
            line.push(median.map_or_else(|| "–".to_owned(), |median| number(median, curves.unit)));
        }
        line.push(growth(points).map_or_else(|| "–".to_owned(), |power| format!("N^{power:.2}")));
        cells.push(line);
    }
    cells
}

/// The exponent between the last two sizes: 0 is flat, 1 is linear. At the beginning the cost of
/// starting a program hides it.
fn growth(points: &[(f64, f64)]) -> Option<f64> {
    let [.., (size, less), (larger, more)] = *points else { return None };
    let possible = size > 0.0 && larger > size && less > 0.0 && more > 0.0;
    let power = possible.then(|| (more / less).ln() / (larger / size).ln())?;
    // A little shrinking is noise and would be printed as "-0.00".
    Some(if power.abs() < 0.005 { 0.0 } else { power })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Row;

    #[test]
    fn growth_is_named_by_its_exponent() {
        assert_eq!(growth(&[(1.0, 5.0), (10.0, 5.0), (100.0, 50.0)]), Some(1.0));
        assert_eq!(growth(&[(10.0, 7.0), (1_000.0, 7.0)]), Some(0.0));
        assert_eq!(growth(&[(0.0, 7.0), (100.0, 9.0)]), None);
        assert_eq!(growth(&[(10.0, 7.0)]), None);
    }

    #[test]
    fn a_curve_is_one_line_of_a_table() {
        let mut record = Record::new("scale");
        for (at, value) in [(100.0, 2e6), (10.0, 1e6)] {
            record.rows.push(Row {
                scenario: "owners".into(),
                measure: "time".into(),
                subject: "lsof".into(),
                at: Some(at),
                unit: "ns".into(),
                samples: vec![value],
            });
        }
        let tables = tables(&record, "owners");
        assert_eq!(tables[0].0, "owners: time, median");
        assert_eq!(tables[0].1[0], ["", "N = 10", "N = 100", "growth at the end"]);
        assert_eq!(tables[0].1[1], ["lsof", "1.00 ms", "2.00 ms", "N^0.30"]);
    }
}
