//! What all guests together say: the sums, the tables, and what a person has to know.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::facts;
use crate::suite::Outcome;
use crate::test::{Counts, Skip};
use crate::vm::answers::{self, Answers};
use crate::vm::exceptions::{self, Exceptions};
use crate::vm::guest::{Done, Ran};
use crate::vm::plan::{Machine, ROOT, State, heading};
use crate::vm::scenarios;
use crate::vm::table::{Page, Table};
use crate::workspace::Workspace;

/// What is expected, and what was found until now.
pub(crate) struct Total {
    outcome: Outcome,
    skips: BTreeSet<Skip>,
    excused: BTreeSet<Skip>,
    missing: Vec<String>,
    exceptions: Exceptions,
    features: Page,
    budget: Page,
    pictures: Vec<(String, Table)>,
    found: Vec<(String, Table)>,
    costs: Table,
    played: Table,
}

impl Total {
    /// Nothing found yet; `missing` are kernels that cannot be had, in words.
    ///
    /// # Errors
    ///
    /// When a page of what is expected cannot be read.
    pub(crate) fn new(workspace: &Workspace, missing: Vec<String>) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(workspace.root().join(name)).with_context(|| format!("reading {name}"))
        };
        let page = |name: &'static str| Page::parse(&read(name)?).with_context(|| format!("reading {name}"));
        Ok(Self {
            outcome: Outcome::default(),
            skips: BTreeSet::new(),
            excused: BTreeSet::new(),
            missing,
            exceptions: Exceptions::parse(&read(exceptions::PAGE)?)?,
            features: page(answers::FEATURES)?,
            budget: page(answers::BUDGET)?,
            pictures: Vec::new(),
            found: Vec::new(),
            costs: Table::default(),
            played: Table::default(),
        })
    }

    /// Takes in one boot.
    pub(crate) fn add(&mut self, machine: &Machine, ran: Ran) {
        for step in &ran.steps {
            let suite = format!("{} {}", machine.name(), step.name);
            match heading(&step.name) {
                Some(situation) => self.compare(machine.kernel.series.name, situation, &suite, step),
                None => self.tests(machine, &suite, step),
            }
        }
        let worked = ran.worked.map_or(f64::NAN, |worked| worked.as_secs_f64());
        println!(
            "       {} ({}): {:.1} s, {worked:.1} s of them at work",
            machine.name(),
            machine.kernel.release,
            ran.took.as_secs_f64()
        );
        if let Some(wrong) = ran.wrong {
            self.outcome.failed += 1;
            self.outcome.failures.push(format!("{}: {wrong}", machine.name()));
        }
    }

    fn tests(&mut self, machine: &Machine, suite: &str, step: &Done) {
        let kernel = machine.kernel.series.name;
        let mut outcome = Outcome::default();
        let results = step.lines.iter().filter(|line| outcome.read(suite, line)).count();
        let ended_well = step.succeeded() || outcome.failed > 0;
        let skipped: Vec<Skip> = step.collected.iter().filter_map(|line| Skip::parse(line)).collect();
        let excused = self.exceptions.excuse(kernel, suite, &mut outcome, &step.lines, &skipped);
        let names =
            excused.iter().filter_map(|skip| skip.test.strip_prefix(suite)?.strip_prefix(": ")).collect();
        let situation = match machine.state {
            State::Plain => "",
            State::Locked => ", locked down",
            State::Systemd => ", systemd is PID 1",
        };
        scenarios::enter(&mut self.played, kernel, situation, &step.lines, &names);
        self.excused.extend(excused);
        if results == 0 || !ended_well {
            outcome.failed += 1;
            outcome.failures.push(format!("{suite}: {}", how(step)));
        }
        let verdict = if outcome.failed > 0 { "FAILED" } else { "ok" };
        println!(
            "{verdict:6} {suite}: {} passed, {} failed in {:.1} s of its own time",
            outcome.passed, outcome.failed, step.seconds
        );
        if outcome.failed > 0 {
            println!("{}", step.lines.join("\n"));
        }
        self.outcome.add(outcome);
        self.skips.extend(skipped.into_iter().map(|skip| skip.in_suite(suite)));
    }

    /// The features of one kernel in one situation are one test.
    fn compare(&mut self, kernel: &str, situation: &str, suite: &str, step: &Done) {
        let answers = Answers::read(&step.lines);
        let expected = self.features.table(situation).cloned();
        let mut differences = match &expected {
            Ok(table) => answers.differences(kernel, table),
            Err(error) => vec![format!("{}: {error:#}", answers::FEATURES)],
        };
        if situation == ROOT {
            match self.budget.table(situation) {
                Ok(table) => differences.extend(answers.overspent(kernel, table)),
                Err(error) => differences.push(format!("{}: {error:#}", answers::BUDGET)),
            }
        }
        if !step.succeeded() {
            differences.push(format!("{}: {}", how(step), step.lines.join(" ")));
        }
        answers.enter(kernel, expected.as_ref().ok(), named(&mut self.pictures, situation));
        // What was cut short is no column to take over.
        if step.succeeded() {
            answers.enter(kernel, None, named(&mut self.found, situation));
            if situation == ROOT {
                for (program, cost) in &answers.costs {
                    self.costs.set(program, kernel, &cost.to_string());
                }
            }
        }
        let verdict = if differences.is_empty() { "ok" } else { "FAILED" };
        println!(
            "{verdict:6} {suite}: {} answers, {} costs, {} differ in {:.1} s of its own time",
            answers.features.len(),
            answers.costs.len(),
            differences.len(),
            step.seconds
        );
        self.outcome.passed += usize::from(differences.is_empty());
        self.outcome.failed += usize::from(!differences.is_empty());
        self.outcome
            .failures
            .extend(differences.into_iter().map(|difference| format!("{suite}: {difference}")));
    }

    /// Takes what was found for what is expected from now on: rewrites the pages, and the table in `guard/KERNEL.md`.
    ///
    /// # Errors
    ///
    /// When a page cannot be written.
    pub(crate) fn write(&self, workspace: &Workspace) -> Result<()> {
        let rewrite = |name: &str, tables: &[(String, Table)]| -> Result<String> {
            let path = workspace.root().join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("reading {name}"))?;
            let page = Page::parse(&text).with_context(|| format!("reading {name}"))?;
            let merged: Vec<(String, Table)> = tables
                .iter()
                .map(|(heading, table)| {
                    let mut all = page.table(heading).cloned().unwrap_or_default();
                    all.take_columns(table);
                    (heading.clone(), all)
                })
                .collect();
            let text = Page::rewritten(&text, &merged);
            fs::write(&path, &text).with_context(|| format!("writing {name}"))?;
            Ok(text)
        };
        let features = rewrite(answers::FEATURES, &self.found)?;
        rewrite(answers::BUDGET, &[(ROOT.to_owned(), answers::budget(&self.costs))])?;
        let path = workspace.root().join(facts::FACTS);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", facts::FACTS))?;
        let text = facts::with_features(&text, &features)?;
        fs::write(&path, text).with_context(|| format!("writing {}", facts::FACTS))
    }

    /// Prints everything; the last line is the sum.
    pub(crate) fn report(self, strict: bool, if_available: bool) -> ExitCode {
        let skips: BTreeSet<Skip> = self.skips.union(&self.excused).cloned().collect();
        let counts = Counts::of(&self.outcome, &skips);
        let missing = self.missing.len();
        for (situation, table) in &self.pictures {
            println!("\nfeatures {situation}:\n{table}");
        }
        if self.costs.subjects().next().is_some() {
            println!("\ninstructions that the verifier went through:\n{}\n", self.costs);
        }
        if self.played.subjects().next().is_some() {
            println!("\ntests:\n{}\n", self.played);
        }
        for Skip { test, why } in &skips {
            println!("skipped: {test}: {why}");
        }
        for ignored in &self.outcome.ignored {
            println!("skipped: {ignored}: ignored in its source");
        }
        for missing in &self.missing {
            println!("skipped: {missing}");
        }
        for failed in &self.outcome.failures {
            println!("failed: {failed}");
        }
        let skipped = counts.skipped + missing;
        let excused = self.excused.len() + if if_available { missing } else { 0 };
        let refused = strict && skipped > excused;
        if refused {
            println!("strict: what is not tested, and is not in {}, is a failure", exceptions::PAGE);
        }
        println!("{} passed, {} failed, {skipped} skipped", counts.passed, counts.failed);
        if counts.failed > 0 || refused { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn how(step: &Done) -> &str {
    step.how.as_deref().unwrap_or("the guest went away")
}

fn named<'a>(tables: &'a mut Vec<(String, Table)>, name: &str) -> &'a mut Table {
    let place = tables.iter().position(|(heading, _)| heading == name).unwrap_or_else(|| {
        tables.push((name.to_owned(), Table::default()));
        tables.len() - 1
    });
    &mut tables[place].1
}
