//! `cargo xtask vm-test`: the end-to-end tests on every kernel that people run.

use std::{env, fs, path::Path, process::ExitCode, sync::Mutex, thread, time::Instant};

use anyhow::{Context as _, Result};

use crate::build;
use crate::process::say;
use crate::setup;
use crate::vm::apt::Apt;
use crate::vm::guest::{Boot, Ran};
use crate::vm::image::{Base, Content};
use crate::vm::kernel::Kernel;
use crate::vm::plan::{Machine, Scope};
use crate::vm::series::{self, Series};
use crate::vm::total::Total;
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
    /// A kernel or an emulator that cannot be had is told and counted, but never fails: a mirror that is down says nothing
    /// about a change
    #[arg(long)]
    if_available: bool,
    /// Only what the kernels offer: the features and the verifier's costs
    #[arg(long, conflicts_with_all = ["filters", "all_scenarios"])]
    features: bool,
    /// Only what needs systemd: the scenarios of units, with systemd as PID 1 of the guest
    #[arg(long, conflicts_with_all = ["features", "all_scenarios", "write"])]
    systemd: bool,
    /// Every end-to-end test on every kernel, which takes long, instead of the selection
    #[arg(long, conflicts_with = "filters")]
    all_scenarios: bool,
    /// Take the features and costs that were found for what is expected from now on
    #[arg(long, conflicts_with = "filters")]
    write: bool,
    /// Show what the tests print as they run
    #[arg(long)]
    live: bool,
    /// Only the tests whose name contains one of these; `kernel::…` means unit tests of package guard
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// In MiB: the programs twice (packed and unpacked), and the tests' largest process.
const MEMORY: u32 = 2048;

/// Runs `vm-test`.
///
/// # Errors
///
/// When the host lacks what a guest needs, or a build fails. Failing tests are the exit code 1.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    let strict = args.strict || env::var_os("CI").is_some_and(|value| value == "true");
    let wanted = wanted(&args.kernel)?;
    let scope = match args {
        Args { features: true, .. } => Scope::Features,
        Args { all_scenarios: true, .. } => Scope::All,
        Args { systemd: true, filters, .. } => Scope::Systemd(filters),
        Args { filters, .. } if !filters.is_empty() => Scope::Only(filters),
        _ => Scope::Core,
    };
    if let Err(error) = host::ensure() {
        if !args.if_available {
            return Err(error);
        }
        println!("NO KERNEL IS TESTED: {error:#}");
        println!("0 passed, 0 failed, {} skipped", wanted.len());
        return Ok(ExitCode::SUCCESS);
    }
    if scope.wants_end_to_end() {
        setup::ensure_test_commands()?;
    }
    kernel::check_programs()?;
    let folder = workspace.target().join("vm");
    let (kernels, missing) = kernels(&wanted, &folder);
    build::prepare_object(workspace, Profile::Dev, false)?;
    let programs = programs::programs(workspace, scope.wants_end_to_end(), scope.wants_unit())?;
    let machines = scope.machines(&kernels);
    let mut bases: Vec<(Content, Base)> = Vec::new();
    for machine in &machines {
        let content = scope.content(machine);
        if bases.iter().all(|(packed, _)| *packed != content) {
            bases.push((content, Base::pack(workspace, &programs, content)?));
        }
    }
    let prepared = began.elapsed();

    let live = args.live || !args.filters.is_empty();
    let total = Mutex::new(Total::new(workspace, missing)?);
    let run = |machine: &Machine| -> Result<()> {
        let ran = boot(machine, scope, &bases, &folder, live)?;
        let mut total = total.lock().map_err(|_| anyhow::anyhow!("another guest's report failed"))?;
        total.add(machine, ran);
        Ok(())
    };
    in_pairs(&machines, run).into_iter().collect::<Result<()>>()?;
    let total = total.into_inner().map_err(|_| anyhow::anyhow!("a guest's report failed"))?;
    println!(
        "{} guests in {:.0} s, after {:.0} s of preparation",
        machines.len(),
        (began.elapsed() - prepared).as_secs_f64(),
        prepared.as_secs_f64()
    );
    if args.write {
        total.write(workspace)?;
    }
    Ok(total.report(strict, args.if_available))
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

fn boot(
    machine: &Machine,
    scope: Scope<'_>,
    bases: &[(Content, Base)],
    folder: &Path,
    live: bool,
) -> Result<Ran> {
    let name = machine.name();
    let content = scope.content(machine);
    let (_, base) = bases.iter().find(|(packed, _)| *packed == content).context("nothing packed")?;
    let image = folder.join(format!("{name}.cpio"));
    base.write(&machine.kernel, &scope.manifest(machine), &image)?;
    let boot = Boot {
        kernel: &machine.kernel,
        image: &image,
        append: machine.append(),
        memory: MEMORY,
        limit: scope.limit(),
        live,
        console: folder.join(format!("{name}.console")),
        times: folder.join(format!("{name}.times")),
        name,
    };
    let mut ran = boot.run()?;
    if let Some(wrong) = &ran.wrong {
        // An emulated machine crashes now and then for no fault of what runs in it. Not twice.
        say(format!("{}: {wrong}; it is booted once more", boot.name));
        ran = boot.run()?;
    }
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
