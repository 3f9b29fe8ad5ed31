//! A page of expectations: under each heading a table with a row per subject and a column per kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// The tables of one page, by heading.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    tables: Vec<(String, Table)>,
}

/// Subjects, and for each kernel series what is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    rows: Vec<(String, BTreeMap<String, String>)>,
}

/// What stands in a cell of which nothing was told.
pub(crate) const NOTHING: &str = "–";

impl Page {
    /// Reads the tables under the page's headings of the second level.
    ///
    /// # Errors
    ///
    /// When a row has another number of cells than the first row of its table.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut page = Self::default();
        let mut columns: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                page.tables.push((heading.trim().to_owned(), Table::default()));
                columns.clear();
            }
            let Some((_, table)) = page.tables.last_mut() else { continue };
            let Some(row) = cells(line) else { continue };
            if columns.is_empty() {
                columns = row;
                continue;
            }
            if row.len() != columns.len() {
                bail!("{} cells instead of {}: {line}", row.len(), columns.len());
            }
            if row[0].starts_with("---") {
                continue;
            }
            for (kernel, cell) in columns.iter().zip(&row).skip(1) {
                table.set(row[0], kernel, cell);
            }
        }
        Ok(page)
    }

    /// The table under a heading.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn table(&self, heading: &str) -> Result<&Table> {
        let found = self.tables.iter().find(|(name, _)| name == heading);
        found.map(|(_, table)| table).with_context(|| format!("no table under `## {heading}`"))
    }

    /// The page's text with other tables in it; headings that the page does not have come last.
    pub(crate) fn rewritten(text: &str, tables: &[(String, Table)]) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut pending: Vec<&(String, Table)> = tables.iter().collect();
        let mut current: Option<&Table> = None;
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                let place = pending.iter().position(|(name, _)| name == heading.trim());
                current = place.map(|place| &pending.remove(place).1);
                lines.push(line.to_owned());
                if let Some(table) = current {
                    lines.extend([String::new(), table.to_string(), String::new()]);
                }
                continue;
            }
            // The old table goes, what is said about it stays.
            let replaced = current.is_some() && cells(line).is_some();
            let blank_twice = line.is_empty() && lines.last().is_none_or(String::is_empty);
            if !replaced && !blank_twice {
                lines.push(line.to_owned());
            }
        }
        for (heading, table) in pending {
            lines.extend([String::new(), format!("## {heading}"), String::new(), table.to_string()]);
        }
        lines.join("\n").trim_end().to_owned() + "\n"
    }
}

impl Table {
    /// Enters a cell.
    pub(crate) fn set(&mut self, subject: &str, kernel: &str, cell: &str) {
        let place = self.rows.iter().position(|(name, _)| name == subject).unwrap_or_else(|| {
            self.rows.push((subject.to_owned(), BTreeMap::new()));
            self.rows.len() - 1
        });
        self.rows[place].1.insert(kernel.to_owned(), cell.to_owned());
    }

    /// What is in a cell.
    pub(crate) fn get(&self, subject: &str, kernel: &str) -> Option<&str> {
        let (_, row) = self.rows.iter().find(|(name, _)| name == subject)?;
        row.get(kernel).map(String::as_str).filter(|cell| *cell != NOTHING)
    }

    /// The subjects, in order.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|(subject, _)| subject.as_str())
    }

    /// Takes over the columns of another table: what is not in them is not here any more either.
    pub(crate) fn take_columns(&mut self, other: &Self) {
        let kernels = other.kernels();
        for (_, row) in &mut self.rows {
            row.retain(|kernel, _| !kernels.contains(&kernel.as_str()));
        }
        for (subject, row) in &other.rows {
            for (kernel, cell) in row {
                self.set(subject, kernel, cell);
            }
        }
        self.rows.retain(|(_, row)| !row.is_empty());
    }

    /// The kernels, oldest first.
    pub(crate) fn kernels(&self) -> Vec<&str> {
        let mut kernels: Vec<&str> = Vec::new();
        for kernel in self.rows.iter().flat_map(|(_, row)| row.keys()) {
            if !kernels.contains(&kernel.as_str()) {
                kernels.push(kernel);
            }
        }
        kernels.sort_by_key(|kernel| {
            kernel.split('.').map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>()
        });
        kernels
    }
}

impl std::fmt::Display for Table {
    /// As a page has it, the columns aligned.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kernels = self.kernels();
        let mut lines = vec![vec!["feature".to_owned()]];
        lines[0].extend(kernels.iter().map(|kernel| (*kernel).to_owned()));
        for (subject, row) in &self.rows {
            let cell = |kernel: &&str| row.get(*kernel).map_or(NOTHING, String::as_str).to_owned();
            lines.push(std::iter::once(subject.clone()).chain(kernels.iter().map(cell)).collect());
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=kernels.len()).map(width).collect();
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            for (cell, width) in line.iter().zip(&widths) {
                write!(f, "| {cell:width$} ")?;
            }
            write!(f, "|")?;
            if index == 0 {
                writeln!(f)?;
                for width in &widths {
                    write!(f, "|{}", "-".repeat(width + 2))?;
                }
                write!(f, "|")?;
            }
        }
        Ok(())
    }
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(row.split('|').map(str::trim).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Page\n\n## as root\n\nWords.\n\n| feature | 5.10 | 7.2 |\n|---|---|---|\n\
                        | btf | yes | yes |\n| new | no | – |\n\nMore.\n\n## locked\n\n| feature | 5.10 |\n|---|---|\n\
                        | btf | no |\n";

    #[test]
    fn tables_are_found_by_their_heading() {
        let page = Page::parse(PAGE).unwrap();
        assert_eq!(page.table("as root").unwrap().get("btf", "7.2"), Some("yes"));
        assert_eq!(page.table("as root").unwrap().get("new", "7.2"), None);
        assert_eq!(page.table("locked").unwrap().get("btf", "5.10"), Some("no"));
        assert!(page.table("other").is_err());
        assert!(Page::parse("## a\n| feature | 5.10 |\n|---|---|\n| btf |\n").is_err());
    }

    #[test]
    fn a_rewritten_page_keeps_its_words_and_reads_the_same() {
        let page = Page::parse(PAGE).unwrap();
        let same = Page::rewritten(PAGE, &page.tables);
        assert_eq!(Page::parse(&same).unwrap(), page);
        assert!(same.contains("Words.") && same.contains("More."), "{same}");
        assert_eq!(Page::rewritten(&same, &page.tables), same);
        let mut more = page.tables[0].1.clone();
        more.set("btf", "6.12", "no");
        let added = Page::rewritten(PAGE, &[("third".to_owned(), more)]);
        assert_eq!(Page::parse(&added).unwrap().table("third").unwrap().get("btf", "6.12"), Some("no"));
        assert_eq!(Page::parse(&added).unwrap().table("locked").unwrap().get("btf", "5.10"), Some("no"));
    }

    #[test]
    fn a_column_that_is_taken_over_forgets_what_was_in_it() {
        let mut table = Page::parse(PAGE).unwrap().table("as root").unwrap().clone();
        let mut found = Table::default();
        found.set("new", "5.10", "yes");
        table.take_columns(&found);
        assert_eq!((table.get("btf", "5.10"), table.get("btf", "7.2")), (None, Some("yes")));
        assert_eq!(table.get("new", "5.10"), Some("yes"));
        let mut gone = Table::default();
        gone.set("btf", "7.2", "yes");
        gone.set("btf", "5.10", "yes");
        table.take_columns(&gone);
        assert_eq!(table.subjects().collect::<Vec<_>>(), ["btf"]);
    }

    #[test]
    fn kernels_are_ordered_by_number() {
        let mut table = Table::default();
        for kernel in ["6.12", "5.10", "7.2", "6.1"] {
            table.set("a", kernel, "yes");
        }
        assert!(table.to_string().starts_with("| feature | 5.10 | 6.1 | 6.12 | 7.2 |"), "{table}");
    }
}
