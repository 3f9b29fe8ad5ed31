//! `cargo xtask test`: every test there is, and one line that says how it went.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::build::{self, Embed, GUARD_BPF, OTLP};
use crate::cargo_json::{self, Built, Executable};
use crate::check::walk;
use crate::process::{is_root, say};
use crate::setup;
use crate::suite::{self, Outcome, Show};
use crate::workspace::{Profile, Workspace};

/// Options of `test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A test that is skipped or ignored fails (also with the environment variable CI=true)
    #[arg(long)]
    strict: bool,
    /// Only the tests whose name contains one of these
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// The package whose tests use the running kernel.
pub(crate) const END_TO_END: &str = "guard-tests";

/// Everything but the BPF programs, which only their own target can build.
const PACKAGES: [&str; 5] = ["guard-core", "guard-common", "guard", "xtask", END_TO_END];

/// What builds the program under test and its stand-ins.
pub(crate) const PROGRAMS: [&str; 6] = ["build", "--package", "guard", "--package", END_TO_END, "--bins"];

/// What builds the test harnesses: of all packages, since what they have in common depends on which they are.
pub(crate) fn harnesses() -> Vec<&'static str> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    ["test", "--no-run"].into_iter().chain(packages).collect()
}

/// Where a test appends `test: reason` when it cannot run here.
const SKIPS: &str = "PORTGUARD_TEST_SKIPS";
/// Set when a test that cannot run has to fail instead.
const STRICT: &str = "PORTGUARD_TEST_STRICT";
/// The binary under test, absolute.
const PROGRAM: &str = "PORTGUARD_BIN";
/// The binary with the feature otlp, absolute.
const EXPORTING: &str = "PORTGUARD_OTLP_BIN";
/// The folder of the stand-in programs, absolute.
const STAND_INS: &str = "PORTGUARD_TEST_BIN_DIR";

/// No suite takes this long; one that hangs must not hang its caller.
const SUITE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Runs `test`.
///
/// # Errors
///
/// When the tests cannot be built or started. Failing tests are not an error but the exit code 1.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let strict = args.strict || env::var_os("CI").is_some_and(|value| value == "true");
    let plan = prepare(workspace, strict)?;
    let built = build_tests(workspace, &plan, &args.filters)?;

    fs::write(&plan.skips, "").with_context(|| format!("creating {}", plan.skips.display()))?;
    let outcome = run_all(workspace, &plan, &built, &args.filters);
    let skips = read_skips(&plan.skips);
    // The list has been read; a folder that cannot be written to fails again, louder, at the next run.
    let _ = fs::remove_file(&plan.skips);
    Ok(report(outcome?, &skips, strict))
}

/// What a test run stands on.
struct Plan {
    /// The value of `GUARD_BPF` for builds, when not the caller's own.
    stub: bool,
    strict: bool,
    skips: PathBuf,
}

fn prepare(workspace: &Workspace, strict: bool) -> Result<Plan> {
    let mut stub = false;
    let mut lacking = Vec::new();
    if let Err(error) = build_object(workspace) {
        match error {
            NoObject::Toolchain(error) if !strict => {
                say(format!("{error:#}"));
                lacking.push("the ebpf tier (no BPF toolchain)".to_owned());
                stub = true;
            }
            NoObject::Toolchain(error) | NoObject::Build(error) => return Err(error),
        }
    }
    if let Err(error) = setup::ensure_test_commands() {
        if strict {
            return Err(error);
        }
        lacking.push(format!("what needs a missing command ({error:#})"));
    }
    if !is_root() {
        lacking.push("what needs root: network namespaces, BPF, other users' processes".to_owned());
    }
    for part in &lacking {
        say(format!("cannot be tested here: {part}"));
    }
    fs::create_dir_all(workspace.target()).context("creating target")?;
    let skips = workspace.target().join(format!("test-skips-{}", std::process::id()));
    Ok(Plan { stub, strict, skips })
}

/// Why there is no object: only the first may be lived without.
enum NoObject {
    Toolchain(anyhow::Error),
    Build(anyhow::Error),
}

fn build_object(workspace: &Workspace) -> Result<(), NoObject> {
    if env::var_os(GUARD_BPF).is_none_or(|value| value.is_empty()) {
        setup::ensure_bpf(workspace, false).map_err(NoObject::Toolchain)?;
    }
    build::prepare_object(workspace, Profile::Dev, true).map_err(NoObject::Build)
}

/// The program under test with its stand-ins, and the test harnesses.
struct Tests {
    program: PathBuf,
    /// The same with the feature otlp, when a test may ask for it.
    exporting: Option<PathBuf>,
    stand_ins: PathBuf,
    suites: Vec<Executable>,
}

/// Builds the program with the feature otlp and puts it aside: the next build takes its place.
/// It takes a build of its own, so only for all tests or for its own.
fn build_exporting(workspace: &Workspace, plan: &Plan, filters: &[String]) -> Result<Option<PathBuf>> {
    if !filters.is_empty() && !filters.iter().any(|filter| filter.contains(OTLP)) {
        return Ok(None);
    }
    say("building portguard with the feature otlp");
    let embed = if plan.stub { Embed::Stub } else { Embed::Object };
    let built = build::portguard_with(&[OTLP], workspace, Profile::Dev, embed)?;
    let aside = workspace.target().join(format!("portguard-{OTLP}"));
    fs::copy(&built, &aside)
        .with_context(|| format!("copying {} to {}", built.display(), aside.display()))?;
    Ok(Some(aside))
}

fn build_tests(workspace: &Workspace, plan: &Plan, filters: &[String]) -> Result<Tests> {
    let exporting = build_exporting(workspace, plan, filters)?;
    let cargo = |arguments: &[&str]| -> Result<Built> {
        let mut cargo = workspace.cargo_command();
        cargo.args(arguments).args(workspace.locked());
        if plan.stub {
            cargo.env(GUARD_BPF, "stub");
        }
        cargo_json::build(&mut cargo)
    };
    say("building the tests");
    let programs = cargo(&PROGRAMS)?;
    let program = programs.binary("portguard")?.to_path_buf();
    let stand_ins = program.parent().context("portguard was built nowhere")?.to_path_buf();
    let mut suites = cargo(&harnesses())?.executables;
    suites.retain(|made| made.test);
    suites.sort_by_key(|made| {
        let place = PACKAGES.iter().position(|package| *package == made.package);
        (place, made.kind.clone(), made.target.clone())
    });
    Ok(Tests { program, exporting, stand_ins, suites })
}

/// Pure suites share the cores; then the doc tests of packages that have any; then, one after another and
/// live, the suites that measure the kernel and should not be measured against a compiler.
fn run_all(workspace: &Workspace, plan: &Plan, tests: &Tests, filters: &[String]) -> Result<Outcome> {
    let (end_to_end, pure): (Vec<_>, Vec<_>) =
        tests.suites.iter().partition(|suite| suite.package == END_TO_END && suite.kind == "test");
    let mut total = Outcome::default();

    let waiting = Mutex::new(pure.into_iter());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            while let Some(suite) = next() {
                done.push(suite::run(
                    &name(suite),
                    harness(plan, tests, suite, filters),
                    Show::Failures,
                    SUITE_LIMIT,
                ));
            }
            done
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    for outcome in outcomes {
        total.add(outcome?);
    }
    for package in PACKAGES {
        let library = tests.suites.iter().find(|suite| suite.package == package && suite.kind == "lib");
        if let Some(library) = library
            && shows_code(&library.folder.join("src"))?
        {
            let name = format!("{package} doc");
            total.add(suite::run(
                &name,
                doc_tests(workspace, plan, package, filters),
                Show::Failures,
                SUITE_LIMIT,
            )?);
        }
    }
    for suite in end_to_end {
        total.add(suite::run(&name(suite), harness(plan, tests, suite, filters), Show::Live, SUITE_LIMIT)?);
    }
    Ok(total)
}

/// Whether the documentation below `folder` shows any code: a library is built once more for its doc
/// tests, which takes the largest one a minute, and is not worth it for none.
fn shows_code(folder: &Path) -> Result<bool> {
    let mut paths = Vec::new();
    walk(folder, folder, &mut paths)?;
    for path in paths.iter().map(|path| folder.join(path)) {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if text.lines().any(begins_code) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn begins_code(line: &str) -> bool {
    let comment = ["///", "//!"].iter().find_map(|begin| line.trim_start().strip_prefix(begin));
    comment.is_some_and(|comment| comment.trim_start().starts_with("```"))
}

fn name(suite: &Executable) -> String {
    let Executable { package, kind, target, .. } = suite;
    if kind == "lib" { package.clone() } else { format!("{package} {kind} {target}") }
}

fn harness(plan: &Plan, tests: &Tests, suite: &Executable, filters: &[String]) -> Command {
    let mut command = Command::new(&suite.path);
    command
        .args(filters)
        .current_dir(&suite.folder)
        .env("CARGO_MANIFEST_DIR", &suite.folder)
        .env(PROGRAM, &tests.program)
        .env(STAND_INS, &tests.stand_ins)
        .env(SKIPS, &plan.skips);
    if let Some(exporting) = &tests.exporting {
        command.env(EXPORTING, exporting);
    }
    if plan.strict {
        command.env(STRICT, "1");
    }
    if suite.package == END_TO_END && suite.kind == "test" {
        // They mostly wait for the kernel, each in a namespace of its own.
        command.env("RUST_TEST_THREADS", "8");
    }
    command
}

fn doc_tests(workspace: &Workspace, plan: &Plan, package: &str, filters: &[String]) -> Command {
    let mut command = workspace.cargo_command();
    command.args(["test", "--doc", "--package", package]).args(workspace.locked());
    if plan.stub {
        command.env(GUARD_BPF, "stub");
    }
    command.arg("--").args(filters);
    command
}

/// Skipped tests and why, one entry per test: a test that skips two of its tiers is one skipped test.
fn read_skips(file: &Path) -> BTreeSet<Skip> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(Skip::parse).collect()
}

/// A test that could not run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skip {
    /// The test's path.
    pub(crate) test: String,
    /// What it lacks.
    pub(crate) why: String,
}

impl Skip {
    /// Reads one line of a file of skips.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let line = line.strip_prefix("SKIP ").unwrap_or(line);
        if line.is_empty() {
            return None;
        }
        // Test paths contain `::`, so only a colon before a blank ends the name.
        let (test, why) = line.split_once(": ").unwrap_or((line, "no reason given"));
        Some(Self { test: test.to_owned(), why: why.to_owned() })
    }

    /// Of several suites with the same tests.
    pub(crate) fn in_suite(self, suite: &str) -> Self {
        Self { test: format!("{suite}: {}", self.test), why: self.why }
    }
}

/// Prints what a person has to know, the summary last.
fn report(outcome: Outcome, skips: &BTreeSet<Skip>, strict: bool) -> ExitCode {
    let counts = Counts::of(&outcome, skips);
    for Skip { test, why } in skips {
        println!("skipped: {test}: {why}");
    }
    for ignored in &outcome.ignored {
        println!("skipped: {ignored}: ignored in its source");
    }
    for measurement in &outcome.measurements {
        println!(
            "not a test: {measurement}: a measurement, run it with `cargo test -- --ignored --nocapture`"
        );
    }
    for elsewhere in &outcome.in_a_guest {
        println!("not here: {elsewhere}: `cargo xtask vm-test` runs it in a machine of its own");
    }
    for failed in &outcome.failures {
        println!("failed: {failed}");
    }
    let refused = strict && counts.skipped > 0;
    if refused {
        println!("strict: a skipped or ignored test is a failure");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed > 0 || refused { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The three numbers of the closing line; every test is in one of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ran and found nothing wrong.
    pub(crate) passed: usize,
    /// Found something wrong.
    pub(crate) failed: usize,
    /// Did not run.
    pub(crate) skipped: usize,
}

impl Counts {
    /// Sorts every test into one of the three.
    pub(crate) fn of(outcome: &Outcome, skips: &BTreeSet<Skip>) -> Self {
        // In strict mode a test that cannot run says so and then fails: it is a failed one.
        let failed =
            |test: &str| outcome.failures.iter().any(|failure| failure.ends_with(&format!(" {test}")));
        let tests: BTreeSet<&str> = skips.iter().map(|skip| skip.test.as_str()).collect();
        let skipped = tests.into_iter().filter(|test| !failed(test)).count();
        Self {
            // The harness counts a test that returned early as passed.
            passed: outcome.passed.saturating_sub(skipped),
            failed: outcome.failed,
            skipped: skipped + outcome.ignored.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(lines: &[&str]) -> BTreeSet<Skip> {
        lines.iter().filter_map(|line| Skip::parse(line)).collect()
    }

    #[test]
    fn only_a_fence_in_documentation_begins_code() {
        assert!(begins_code("/// ```") && begins_code("    //! ```no_run"));
        assert!(!begins_code("/// `code`") && !begins_code("let fence = \"```\";"));
    }

    #[test]
    fn a_skip_line_names_the_test_and_the_reason() {
        let skip = Skip::parse("SKIP e2e::orphan::ebpf: needs CAP_BPF: not root").unwrap();
        assert_eq!((skip.test.as_str(), skip.why.as_str()), ("e2e::orphan::ebpf", "needs CAP_BPF: not root"));
        assert_eq!(Skip::parse("  \n"), None);
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one_however_often_it_says_so() {
        let outcome = Outcome { passed: 5, ignored: vec!["suite: c".into()], ..Outcome::default() };
        let counts = Counts::of(&outcome, &skips(&["a: no ebpf", "a: no netlink", "b: no node"]));
        assert_eq!(counts, Counts { passed: 3, failed: 0, skipped: 3 });
    }

    #[test]
    fn a_skip_that_failed_its_test_is_counted_once() {
        let outcome =
            Outcome { passed: 5, failed: 1, failures: vec!["suite: a".into()], ..Outcome::default() };
        let counts = Counts::of(&outcome, &skips(&["a: no ebpf"]));
        assert_eq!(counts, Counts { passed: 5, failed: 1, skipped: 0 });
    }
}
