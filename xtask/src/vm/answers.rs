//! What a guest's probe told, and where that differs from what is expected.

use std::fmt::Write as _;

use crate::vm::table::Table;

/// The table of features per kernel.
pub(crate) const FEATURES: &str = "tests/vm/FEATURES.md";

/// The most instructions that the verifier may go through for each program.
pub(crate) const BUDGET: &str = "tests/vm/BUDGET.md";

/// What a kernel answered in one situation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Feature, answer, and why it is not another.
    pub(crate) features: Vec<(String, String, String)>,
    /// Program, and instructions that the verifier went through.
    pub(crate) costs: Vec<(String, u64)>,
}

impl Answers {
    /// Reads what `tests/src/bin/vm_probe` printed; other lines are passed over.
    pub(crate) fn read(lines: &[String]) -> Self {
        let mut answers = Self::default();
        for line in lines {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["answer", feature, answer, why] => {
                    answers.features.push((feature.to_owned(), answer.to_owned(), why.to_owned()));
                }
                ["cost", program, number] => {
                    if let Ok(number) = number.parse() {
                        answers.costs.push((program.to_owned(), number));
                    }
                }
                _ => {}
            }
        }
        answers
    }

    /// Every feature that is other than expected, in either direction, and every one that only one side knows.
    pub(crate) fn differences(&self, kernel: &str, expected: &Table) -> Vec<String> {
        let mut differences = Vec::new();
        for (feature, found, why) in &self.features {
            let should = expected.get(feature, kernel);
            if should != Some(found) {
                let mut line = format!(
                    "kernel {kernel}, {feature}: expected {}, found {found}",
                    should.unwrap_or("nothing")
                );
                if !why.is_empty() {
                    // Writing to a String cannot fail.
                    let _ = write!(line, " ({why})");
                }
                differences.push(line);
            }
        }
        for feature in expected.subjects() {
            let told = self.features.iter().any(|(name, ..)| name == feature);
            if let (Some(should), false) = (expected.get(feature, kernel), told) {
                differences.push(format!("kernel {kernel}, {feature}: expected {should}, found nothing"));
            }
        }
        differences
    }

    /// Every program that costs more than its budget, has none, or has one and was not told of.
    pub(crate) fn overspent(&self, kernel: &str, budget: &Table) -> Vec<String> {
        let mut wrong = Vec::new();
        for (program, cost) in &self.costs {
            match budget.get(program, kernel).map(str::parse::<u64>) {
                Some(Ok(most)) if *cost <= most => {}
                Some(Ok(most)) => wrong.push(format!(
                    "kernel {kernel}, {program}: the verifier went through {cost} instructions, {BUDGET} allows {most}"
                )),
                _ => wrong.push(format!("kernel {kernel}, {program}: {BUDGET} has no number ({cost} now)")),
            }
        }
        for program in budget.subjects().filter(|program| budget.get(program, kernel).is_some()) {
            if !self.costs.iter().any(|(name, _)| name == program) {
                wrong.push(format!("kernel {kernel}, {program}: was not verified, but {BUDGET} has it"));
            }
        }
        wrong
    }

    /// As cells of a kernel's column; with what is expected where that differs.
    pub(crate) fn enter(&self, kernel: &str, expected: Option<&Table>, into: &mut Table) {
        let missing = expected.into_iter().flat_map(Table::subjects);
        let missing: Vec<&str> =
            missing.filter(|name| !self.features.iter().any(|(feature, ..)| feature == name)).collect();
        let found = self.features.iter().map(|(feature, answer, _)| (feature.as_str(), answer.as_str()));
        for (feature, answer) in found.chain(missing.into_iter().map(|name| (name, "nothing"))) {
            let should = expected.map(|table| table.get(feature, kernel).unwrap_or("nothing"));
            match should {
                Some("nothing") if answer == "nothing" => {}
                Some(should) if should != answer => {
                    into.set(feature, kernel, &format!("{answer} (expected {should})"));
                }
                _ => into.set(feature, kernel, answer),
            }
        }
    }
}

/// What is allowed after these costs were seen: a quarter more, and a round number.
pub(crate) fn budget(costs: &Table) -> Table {
    let mut budget = Table::default();
    for program in costs.subjects() {
        for kernel in costs.kernels() {
            if let Some(Ok(cost)) = costs.get(program, kernel).map(str::parse::<u64>) {
                budget.set(program, kernel, &(cost + cost / 4).next_multiple_of(10).to_string());
            }
        }
    }
    budget
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::table::Page;

    fn table() -> Table {
        let page = "## a\n| feature | 5.10 | 7.2 |\n|---|---|---|\n| btf | yes | yes |\n| new | no | yes |\n";
        Page::parse(page).unwrap().table("a").unwrap().clone()
    }

    fn told(lines: &[&str]) -> Answers {
        Answers::read(&lines.iter().map(|line| line.replace(' ', "\t")).collect::<Vec<_>>())
    }

    #[test]
    fn a_difference_in_either_direction_is_told() {
        let good = told(&["answer btf yes ", "whatever", "answer new no old"]);
        assert!(good.differences("5.10", &table()).is_empty());
        assert_eq!(
            told(&["answer btf no gone", "answer new no old"]).differences("5.10", &table()),
            ["kernel 5.10, btf: expected yes, found no (gone)"]
        );
        assert_eq!(
            told(&["answer btf yes ", "answer new yes "]).differences("5.10", &table()),
            ["kernel 5.10, new: expected no, found yes"]
        );
    }

    #[test]
    fn a_cell_that_only_one_side_has_is_told() {
        assert_eq!(told(&["answer btf yes "]).differences("7.2", &table()).len(), 1);
        let more = told(&["answer btf yes ", "answer new yes ", "answer newer yes "]);
        assert_eq!(more.differences("7.2", &table()).len(), 1);
        assert_eq!(told(&["answer btf yes "]).differences("6.1", &table()).len(), 2 - 1);
        let mut picture = Table::default();
        told(&["answer btf no "]).enter("7.2", Some(&table()), &mut picture);
        assert_eq!(picture.get("btf", "7.2"), Some("no (expected yes)"));
        assert_eq!(picture.get("new", "7.2"), Some("nothing (expected yes)"));
    }

    #[test]
    fn a_program_over_its_budget_or_without_one_is_told() {
        let page = "## a\n| feature | 5.10 |\n|---|---|\n| big | 100 |\n| gone | 7 |\n";
        let budget = Page::parse(page).unwrap().table("a").unwrap().clone();
        let overspent = |lines: &[&str]| told(lines).overspent("5.10", &budget).len();
        assert_eq!(overspent(&["cost big 100", "cost gone 1"]), 0);
        assert_eq!(overspent(&["cost big 101", "cost gone 1"]), 1);
        assert_eq!(overspent(&["cost big 100"]), 1);
        assert_eq!(overspent(&["cost big 1", "cost gone 1", "cost new 1"]), 1);
    }
}
