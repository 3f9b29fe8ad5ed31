//! `cargo xtask vm-test`: the end-to-end tests on every kernel that people run.

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::ExitCode,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::build;
use crate::process::say;
use crate::suite::Outcome;
use crate::test::{Counts, Skip};
use crate::vm::apt::Apt;
use crate::vm::exceptions::{self, Exceptions};
use crate::vm::guest::{Boot, Manifest, Ran, Step};
use crate::vm::image::{BIN, Base};
use crate::vm::kernel::Kernel;
use crate::vm::series::{self, Series};
use crate::vm::{build as programs, host, kernel};
use crate::workspace::{Profile, Workspace};

/// Options of `vm-test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// 5.10, 6.1, 6.12, 6.18, 7.2 or all; repeatable
    #[arg(long, value_name = "SERIES", default_value = "all")]
    kernel: Vec<String>,
    /// A kernel that cannot be had, or a test that is skipped unexpectedly, fails (also with CI=true)
    #[arg(long)]
    strict: bool,
    /// Show what the tests print as they run
    #[arg(long)]
    live: bool,
    /// Only the tests whose name contains one of these; `kernel::…` means unit tests of package guard
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// On the host's clock. The slowest kernel needs a third of it on a machine with nothing else to do.
const BOOT_LIMIT: Duration = Duration::from_secs(15 * 60);

/// On the guest's clock, which skips what is waited for: nothing takes this long but what hangs.
const STEP_LIMIT: Duration = Duration::from_secs(30 * 60);

/// In MiB: the programs twice (packed and unpacked), and the tests' largest process.
const MEMORY: u32 = 2048;

/// The step of the unit tests, which are built only for it.
const UNIT: &str = "unit";

/// The unit tests of package guard that depend on the kernel begin with this.
const DOORS: &str = "kernel::";

/// Where the tests of a guest note what they skip.
const SKIPS: &str = "/tmp/skips";

/// Runs `vm-test`.
///
/// # Errors
///
/// When the host lacks what a guest needs, or a build fails. Failing tests are the exit code 1.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    let strict = args.strict || env::var_os("CI").is_some_and(|value| value == "true");
    let wanted = wanted(&args.kernel)?;
    host::ensure()?;
    kernel::check_programs()?;
    let folder = workspace.target().join("vm");
    let (kernels, missing) = kernels(&wanted, &folder);
    build::prepare_object(workspace, Profile::Dev, false)?;
    let manifest = manifest(args);
    let unit = manifest.steps.iter().any(|step| step.name == UNIT);
    let base = Base::pack(workspace, &programs::programs(workspace, unit)?)?;
    let prepared = began.elapsed();

    let live = args.live || !args.filters.is_empty();
    let run = |kernel: &Kernel| boot(kernel, &base, &manifest, &folder, live);
    let ran = in_pairs(&kernels, run);
    let page = |name: &str| {
        let page = workspace.root().join(name);
        fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))
    };
    let exceptions = Exceptions::parse(&page(exceptions::PAGE)?)?;
    let mut total = Total { missing, exceptions, ..Total::default() };
    for (kernel, ran) in kernels.iter().zip(ran) {
        total.add(kernel, ran?);
    }
    println!(
        "{} kernels in {:.0} s, after {:.0} s of preparation",
        kernels.len(),
        (began.elapsed() - prepared).as_secs_f64(),
        prepared.as_secs_f64()
    );
    Ok(total.report(strict))
}

fn wanted(names: &[String]) -> Result<Vec<Series>> {
    if names.iter().any(|name| name == "all") {
        return Ok(series::ALL.to_vec());
    }
    let known: Vec<&str> = series::ALL.iter().map(|series| series.name).collect();
    let find = |name: &String| {
        let series = series::ALL.into_iter().find(|series| series.name == name);
        series.with_context(|| format!("no kernel {name} is tested: give {} or all", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// Those that can be had, and for each other one why it cannot.
fn kernels(wanted: &[Series], folder: &Path) -> (Vec<Kernel>, Vec<String>) {
    let apt = Apt::open(folder.join("apt"));
    let mut missing = Vec::new();
    let mut kernels = Vec::new();
    for series in wanted {
        match Kernel::get(*series, &apt, &folder.join("kernels")) {
            Ok(kernel) => {
                say(format!("kernel {}: {}", series.name, kernel.release));
                kernels.push(kernel);
            }
            Err(error) => {
                say(format!("KERNEL {} CANNOT BE HAD: {error:#}", series.name));
                missing.push(format!("kernel {}: {error:#}", series.name));
            }
        }
    }
    (kernels, missing)
}

fn manifest(args: &Args) -> Manifest {
    let filters = &args.filters;
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment = vec![
        variable("PATH", BIN),
        variable("HOME", "/"),
        variable("PORTGUARD_BIN", "/bin/portguard"),
        variable("PORTGUARD_TEST_BIN_DIR", BIN),
        variable("PORTGUARD_TEST_NODE_DIR", "/node"),
        variable("PORTGUARD_TEST_SKIPS", SKIPS),
        // Waiting costs nothing there, so more at a time would only slow each other down.
        variable("RUST_TEST_THREADS", "2"),
    ];
    let step = |name: &str, program: &str, arguments: &[String]| Step {
        name: name.to_owned(),
        limit: STEP_LIMIT,
        collect: Some(SKIPS.to_owned()),
        environment: environment.clone(),
        without: Vec::new(),
        command: std::iter::once(program.to_owned()).chain(arguments.iter().cloned()).collect(),
    };
    let all = [DOORS.to_owned()];
    let (doors, scenarios): (Vec<_>, Vec<_>) =
        filters.iter().cloned().partition(|filter| filter.starts_with(DOORS));
    let mut steps = Vec::new();
    if filters.is_empty() || !doors.is_empty() {
        let doors = if doors.is_empty() { &all[..] } else { &doors };
        steps.push(step(UNIT, "/bin/unit", doors));
    }
    if filters.is_empty() || !scenarios.is_empty() {
        steps.push(step("e2e", "/bin/e2e", &scenarios));
    }
    Manifest { steps }
}

fn boot(kernel: &Kernel, base: &Base, manifest: &Manifest, folder: &Path, live: bool) -> Result<Ran> {
    let name = kernel.series.name;
    let image = folder.join(format!("{name}.cpio"));
    base.write(kernel, manifest, &image)?;
    let boot = Boot {
        name: name.to_owned(),
        kernel,
        image: &image,
        append: "",
        memory: MEMORY,
        limit: BOOT_LIMIT,
        live,
        console: folder.join(format!("{name}.console")),
    };
    let ran = boot.run()?;
    // Written anew by every run; a left-over costs only its space.
    let _ = fs::remove_file(&image);
    Ok(ran)
}

/// Does all the work, as many pieces at a time as there are processors, and keeps the order.
fn in_pairs<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let waiting = Mutex::new(items.iter().enumerate());
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let next = waiting.lock().map(|mut waiting| waiting.next());
            let Ok(Some((index, item))) = next else { return done };
            done.push((index, work(item)));
        }
    };
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Everything that a person has to know in the end.
#[derive(Default)]
struct Total {
    outcome: Outcome,
    skips: BTreeSet<Skip>,
    excused: BTreeSet<Skip>,
    missing: Vec<String>,
    exceptions: Exceptions,
}

impl Total {
    fn add(&mut self, kernel: &Kernel, ran: Ran) {
        let name = kernel.series.name;
        for step in &ran.steps {
            let suite = format!("{name} {}", step.name);
            let mut outcome = Outcome::default();
            let results = step.lines.iter().filter(|line| outcome.read(&suite, line)).count();
            let ended_well = step.succeeded() || outcome.failed > 0;
            self.excused.extend(self.exceptions.excuse(name, &suite, &mut outcome, &step.lines));
            if results == 0 || !ended_well {
                outcome.failed += 1;
                let how = step.how.as_deref().unwrap_or("the guest went away");
                outcome.failures.push(format!("{suite}: {how}"));
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
            let skips = step.collected.iter().filter_map(|line| Skip::parse(line));
            self.skips.extend(skips.map(|skip| skip.in_suite(&suite)));
        }
        println!("       {name} ({}): {:.1} s", kernel.release, ran.took.as_secs_f64());
        if let Some(wrong) = ran.wrong {
            self.outcome.failed += 1;
            self.outcome.failures.push(format!("{name}: {wrong}"));
        }
    }

    fn report(self, strict: bool) -> ExitCode {
        let skips: BTreeSet<Skip> = self.skips.union(&self.excused).cloned().collect();
        let counts = Counts::of(&self.outcome, &skips);
        let missing = self.missing.len();
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
        let refused = strict && skipped > self.excused.len();
        if refused {
            println!("strict: what is not tested, and is not in {}, is a failure", exceptions::PAGE);
        }
        println!("{} passed, {} failed, {skipped} skipped", counts.passed, counts.failed);
        if counts.failed > 0 || refused { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
