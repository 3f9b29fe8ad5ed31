//! Compares `guard/KERNEL.md` with the tests: a fact whose test is gone is no fact any more.

use crate::layer_check::File;

/// The table of kernel facts.
const FACTS: &str = "guard/KERNEL.md";

/// Every row that names no test, or one that does not exist, one line each.
pub(crate) fn unpinned(files: &[File]) -> Vec<String> {
    let Some(facts) = files.iter().find(|file| file.path == FACTS) else {
        return vec![format!("{FACTS}: missing")];
    };
    let mut found = Vec::new();
    for (index, line) in facts.text.lines().enumerate() {
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
    fn a_row_needs_a_test_that_exists() {
        let head = "| fact | since | pinned by |\n|---|---|---|\n";
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | `it_holds` |\n")), 0);
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | `it_holds`, `it_is_gone` |\n")), 1);
        assert_eq!(unpinned_in(&format!("{head}| a | 5.8 | believed |\n")), 1);
        assert_eq!(unpinned(&[]).len(), 1);
    }
}
