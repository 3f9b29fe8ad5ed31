//! The tests that cannot pass on some kernel, each with its reason: a table that has to be true.

use anyhow::{Context as _, Result};

use crate::suite::Outcome;
use crate::test::Skip;

/// The page with the table.
pub(crate) const PAGE: &str = "tests/vm/EXCEPTIONS.md";

/// Every exception.
#[derive(Debug, Default)]
pub(crate) struct Exceptions(Vec<Exception>);

#[derive(Debug, PartialEq, Eq)]
struct Exception {
    test: String,
    kernels: Vec<String>,
    why: String,
}

impl Exceptions {
    /// Reads the table of a page: test, kernels, why.
    ///
    /// # Errors
    ///
    /// When a row has another form.
    pub(crate) fn parse(page: &str) -> Result<Self> {
        let rows = page.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
        let rows = rows.filter(|row| !row.contains("---")).skip(1);
        let row = |row: &str| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            let test = cells.next()?;
            let kernels = cells.next()?.split(", ").map(str::to_owned).collect();
            let why = cells.next().filter(|why| !why.is_empty())?;
            Some(Exception { test, kernels, why })
        };
        let row =
            |text: &str| row(text).with_context(|| format!("{PAGE}: not a test, kernels and why: {text}"));
        rows.map(row).collect::<Result<_>>().map(Self)
    }

    /// The names of the tests.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|exception| exception.test.as_str())
    }

    /// Takes the failures that are expected of this kernel out of an outcome and returns them as skipped tests, with
    /// those of `skipped`, which skipped themselves, that are expected too.
    /// One that is expected to fail and passed is a failure: the table is wrong.
    pub(crate) fn excuse(
        &self,
        kernel: &str,
        suite: &str,
        outcome: &mut Outcome,
        lines: &[String],
        skipped: &[Skip],
    ) -> Vec<Skip> {
        let here = self.0.iter().filter(|exception| exception.kernels.iter().any(|name| name == kernel));
        let mut excused = Vec::new();
        for exception in here {
            let failed = |failure: &String| {
                failure
                    .strip_prefix(suite)
                    .and_then(|rest| rest.strip_prefix(": "))
                    .is_some_and(|test| exception.covers(test))
            };
            for failure in outcome.failures.extract_if(.., |failure| failed(failure)) {
                // A harness that was killed has named failures and counted none.
                outcome.failed = outcome.failed.saturating_sub(1);
                // The harness does not count a failed test as passed, a skipped one it does.
                outcome.passed += 1;
                excused.push(Skip { test: failure, why: exception.why.clone() });
            }
            let passed = |line: &&String| {
                let test = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"));
                // The harness calls passed what skipped itself.
                let skipped = |test: &str| skipped.iter().any(|skip| is_called(test, &skip.test));
                test.is_some_and(|test| exception.covers(test) && !skipped(test))
            };
            let expected =
                |skip: &&Skip| exception.covers(&skip.test) || is_called(&exception.test, &skip.test);
            excused.extend(skipped.iter().filter(expected).map(|skip| skip.clone().in_suite(suite)));
            for line in lines.iter().filter(passed) {
                outcome.failed += 1;
                outcome.failures.push(format!("{suite}: {line}, but {PAGE} says it cannot pass"));
            }
        }
        excused
    }
}

impl Exception {
    /// Whether this test is meant, or the scenario that it plays in one tier.
    fn covers(&self, test: &str) -> bool {
        test.strip_prefix(&self.test).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

/// Whether `path` is the path of the test that calls itself `name`: its path, or the last part of it.
fn is_called(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "| test | kernels | why |\n|---|---|---|\n| `a::b` | 5.10, 6.1 | too old |\n";

    fn outcome(lines: &[String]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.read("6.1 e2e", line);
        }
        outcome
    }

    #[test]
    fn an_expected_failure_is_a_skip_and_another_one_a_failure() {
        let lines = [
            "test a::b::ebpf ... FAILED",
            "test a::bc ... FAILED",
            "test result: FAILED. 0 passed; 2 failed",
        ];
        let lines = lines.map(str::to_owned);
        let mut outcome = outcome(&lines);
        let excused = Exceptions::parse(TABLE).unwrap().excuse("6.1", "6.1 e2e", &mut outcome, &lines, &[]);
        assert_eq!(excused, [Skip { test: "6.1 e2e: a::b::ebpf".into(), why: "too old".into() }]);
        assert_eq!((outcome.passed, outcome.failed, outcome.failures.len()), (1, 1, 1));
    }

    #[test]
    fn a_test_that_passes_against_the_table_is_a_failure() {
        let lines = ["test a::b::ebpf ... ok", "test result: ok. 1 passed; 0 failed"].map(str::to_owned);
        let mut outcome = outcome(&lines);
        let table = Exceptions::parse(TABLE).unwrap();
        assert!(table.excuse("7.2", "6.1 e2e", &mut outcome, &lines, &[]).is_empty());
        assert_eq!(outcome.failed, 0);
        assert!(table.excuse("6.1", "6.1 e2e", &mut outcome, &lines, &[]).is_empty());
        assert_eq!((outcome.failed, outcome.failures.len()), (1, 1));
    }

    #[test]
    fn a_test_that_skips_itself_is_neither_a_pass_against_the_table_nor_a_surprise() {
        let lines = ["test a::b::ebpf ... ok", "test c ... ok", "test result: ok. 2 passed; 0 failed"];
        let lines = lines.map(str::to_owned);
        let skip = |test: &str| Skip { test: test.into(), why: "too old".into() };
        let table = Exceptions::parse(TABLE).unwrap();
        for name in ["a::b::ebpf", "b::ebpf"] {
            let mut outcome = outcome(&lines);
            table.excuse("6.1", "6.1 e2e", &mut outcome, &lines, &[skip(name)]);
            assert_eq!(outcome.failed, 0, "{name}");
        }
        let mut outcome = outcome(&lines);
        for name in ["a::b", "b", "a::b::ebpf"] {
            let excused = table.excuse("6.1", "6.1 e2e", &mut outcome, &lines, &[skip(name), skip("c")]);
            assert_eq!(excused, [Skip { test: format!("6.1 e2e: {name}"), why: "too old".into() }]);
        }
    }

    #[test]
    fn a_row_without_a_reason_is_an_error() {
        assert!(Exceptions::parse("| test | kernels | why |\n|---|---|---|\n| a | 5.10 | |\n").is_err());
    }
}
