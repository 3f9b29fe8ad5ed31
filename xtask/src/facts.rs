//! Compares `guard/KERNEL.md` with the tests: a fact whose test is gone is no fact any more.

use anyhow::{Context as _, Result};

use crate::layer_check::File;
use crate::vm::answers::FEATURES;
use crate::vm::exceptions::{self, Exceptions};
use crate::vm::plan::ROOT;
use crate::vm::table::Page;

/// The table of kernel facts.
pub(crate) const FACTS: &str = "guard/KERNEL.md";

/// Between these is a copy of the table of features, in which no row names a test.
const BEGIN: &str = "<!-- features: begin -->";
const END: &str = "<!-- features: end -->";

/// Every row that names no test, or one that does not exist, one line each.
pub(crate) fn unpinned(files: &[File]) -> Vec<String> {
    let Some(facts) = files.iter().find(|file| file.path == FACTS) else {
        return vec![format!("{FACTS}: missing")];
    };
    let mut found = Vec::new();
    let mut copied = false;
    for (index, line) in facts.text.lines().enumerate() {
        copied = line == BEGIN || (copied && line != END);
        if copied {
            continue;
        }
        let Some(pins) = last_cell(line) else { continue };
        let names: Vec<&str> = pins.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            found.push(format!("{FACTS}:{}: no test pins this", index + 1));
        }
        for name in names.into_iter().filter(|name| !exists(files, name)) {
            found.push(format!("{FACTS}:{}: no test is called {name}", index + 1));
        }
    }
    found
}

/// Whether the copy of the table of features is the table, in words if not.
pub(crate) fn outdated(files: &[File]) -> Vec<String> {
    let text = |path: &str| files.iter().find(|file| file.path == path).map(|file| file.text.as_str());
    let (Some(facts), Some(features)) = (text(FACTS), text(FEATURES)) else {
        return vec![format!("{FACTS} or {FEATURES}: missing")];
    };
    match with_features(facts, features) {
        Ok(new) if new == facts => Vec::new(),
        Ok(_) => vec![format!(
            "{FACTS}: its table of features is not {FEATURES}'s; `cargo xtask vm-test --features --write` copies it"
        )],
        Err(error) => vec![format!("{FACTS}: {error:#}")],
    }
}

/// The page of facts with the table of features as it is now.
///
/// # Errors
///
/// When the place for it, or the table, is missing.
pub(crate) fn with_features(facts: &str, features: &str) -> Result<String> {
    let table = Page::parse(features)?.table(ROOT)?.to_string();
    let (before, rest) = facts.split_once(BEGIN).with_context(|| format!("no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no line {END}"))?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n\n{END}{after}"))
}

/// Every test that is excused on some kernel and does not exist.
pub(crate) fn unknown_exceptions(files: &[File]) -> Vec<String> {
    let Some(page) = files.iter().find(|file| file.path == exceptions::PAGE) else {
        return vec![format!("{}: missing", exceptions::PAGE)];
    };
    match Exceptions::parse(&page.text) {
        Ok(table) => {
            let gone = table.tests().filter(|test| {
                let name = test.rsplit("::").next().unwrap_or(test);
                !exists(files, name)
            });
            gone.map(|test| format!("{}: no test is called {test}", exceptions::PAGE)).collect()
        }
        Err(error) => vec![format!("{error:#}")],
    }
}

/// The last cell of a row of facts; `None` for the heading, the rule below it and for prose.
fn last_cell(line: &str) -> Option<&str> {
    let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let cell = row.rsplit('|').next()?.trim();
    let is_rule = cell.chars().all(|c| matches!(c, '-' | ':'));
    (!is_rule && cell != "pinned by").then_some(cell)
}

/// A test function, or a scenario that is played once per tier.
fn exists(files: &[File], name: &str) -> bool {
    let function = format!("fn {name}(");
    files.iter().any(|file| file.path.ends_with(".rs") && file.text.contains(&function))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpinned_in(facts: &str) -> usize {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        unpinned(&[file(FACTS, facts), file("a.rs", "fn it_holds() {}")]).len()
    }

    #[test]
    fn a_copy_of_another_table_is_outdated() {
        let page = |cell: &str| format!("## {ROOT}\n\n| feature | 5.10 |\n|---|---|\n| btf | {cell} |\n");
        let facts = with_features(&format!("Facts.\n\n{BEGIN}\n{END}\n"), &page("yes")).unwrap();
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let outdated = |cell: &str| outdated(&[file(FACTS, &facts), file(FEATURES, &page(cell))]).len();
        assert_eq!((outdated("yes"), outdated("no")), (0, 1));
        assert!(unpinned(&[file(FACTS, &facts)]).is_empty());
        assert!(with_features("no place", &page("yes")).is_err());
    }

    #[test]
    fn an_exception_is_for_a_test_that_exists() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let unknown = |test: &str| {
            let page = format!("| test | kernels | why |\n|---|---|---|\n| `{test}` | 5.10 | old |\n");
            unknown_exceptions(&[file(exceptions::PAGE, &page), file("a.rs", "fn it_holds(")]).len()
        };
        assert_eq!((unknown("a::it_holds"), unknown("a::it_is_gone")), (0, 1));
        assert_eq!(unknown_exceptions(&[]).len(), 1);
    }

    #[test]
    fn a_row_needs_a_test_that_exists() {
        let head = "| fact | since | pinned by |\n|---|---|---|\n";
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | `it_holds` |\n")), 0);
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | `it_holds`, `it_is_gone` |\n")), 1);
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | believed |\n")), 1);
        assert_eq!(unpinned(&[]).len(), 1);
    }
}
