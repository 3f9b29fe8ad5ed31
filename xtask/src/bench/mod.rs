//! `cargo xtask bench`: portguard beside what people use today, measured in one run.
//!
//! It prints, writes JSON and pictures, and judges nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::build::{self, Embed};
use crate::cargo_json;
use crate::process::{is_root, say, shown};
use crate::workspace::{Profile, Workspace};

use self::machine::Machine;
use self::record::{Line, Record};

mod distribution;
mod growth;
mod machine;
mod peers;
mod picture;
mod readme;
mod record;
mod table;
mod timeline;

/// Options of `bench`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Small rounds of everything, meant for two minutes on an idle machine (without builds and installations); fewer samples
    #[arg(long)]
    quick: bool,
    /// This many rounds of each section, however long they take
    #[arg(long)]
    rounds: Option<usize>,
    /// Install nothing: compare with what is there
    #[arg(long)]
    no_install: bool,
    /// Build nothing: measure the `portguard` in this folder with the `bench` and `standin` beside it
    #[arg(long, value_name = "FOLDER")]
    built: Option<PathBuf>,
    /// Measure nothing: print the README's table of the last run
    #[arg(long)]
    readme: bool,
    /// Only these: release, restart, host, idle, scale
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// The sections, in the order of the run, and what each is about.
const SECTIONS: [(&str, &str); 5] = [
    ("release", "how long after the port became bindable does somebody know it?"),
    ("restart", "how long does a whole restart take, and how much of that is dead time?"),
    ("host", "what does watching cost the connections of the host?"),
    ("idle", "what does a gate cost that only waits?"),
    ("scale", "how does it grow?"),
];

/// Runs `bench`.
///
/// # Errors
///
/// When something cannot be built, started or written. Numbers are never an error.
pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    let folder = workspace.target().join("bench");
    if args.readme {
        let records = readme::records(&folder, &SECTIONS.map(|(name, _)| name))?;
        print!("{}", readme::markdown(&records));
        return Ok(());
    }
    for name in &args.names {
        if !SECTIONS.iter().any(|(section, _)| section == name) {
            bail!("no such part: {name}; there are: {}", SECTIONS.map(|(name, _)| name).join(", "));
        }
    }
    if !is_root() {
        bail!("the measurements need root: private namespaces, BPF, a thread that nobody interrupts");
    }
    let programs = match &args.built {
        Some(folder) => Programs::in_folder(folder)?,
        None => Programs::build(workspace)?,
    };
    if !args.no_install {
        peers::ensure(workspace)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let machine = Machine::here(workspace);
    println!("{}", machine.line());
    if let Some(why) = machine.disturbed() {
        println!("WARNING: {why}");
    }
    let about = json!({
        "machine": machine.to_json(),
        "peers": peers::versions(workspace),
        "quick": args.quick,
        "rounds": args.rounds,
    });
    for (name, about_it) in SECTIONS {
        if args.names.is_empty() || args.names.iter().any(|asked| asked == name) {
            println!("\n== {name}: {about_it}");
            let record = measure(workspace, &programs, args, name)?;
            show(&record);
            keep(&record, &about, &folder)?;
        }
    }
    Ok(())
}

/// What is measured, and what measures.
struct Programs {
    portguard: PathBuf,
    bench: PathBuf,
}

impl Programs {
    fn build(workspace: &Workspace) -> Result<Self> {
        build::prepare_object(workspace, Profile::Release, false)?;
        let portguard = build::portguard(workspace, Profile::Release, Embed::Object)?;
        let mut cargo = workspace.cargo_command();
        cargo.args(["build", "--release", "--package", "guard-tests", "--bins"]).args(workspace.locked());
        let bench = cargo_json::build(&mut cargo)?.binary("bench")?.to_path_buf();
        Ok(Self { portguard, bench })
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder).with_context(|| format!("finding {}", folder.display()))?;
        let [portguard, bench, standin] = ["portguard", "bench", "standin"].map(|name| folder.join(name));
        for program in [&portguard, &bench, &standin] {
            if !program.is_file() {
                bail!("no {}: build it, or leave --built out", program.display());
            }
        }
        Ok(Self { portguard, bench })
    }
}

fn measure(workspace: &Workspace, programs: &Programs, args: &Args, section: &str) -> Result<Record> {
    let started = Instant::now();
    let mut bench = Command::new(&programs.bench);
    bench.arg(section).arg("--peers").arg(peers::folder(workspace)).env("PORTGUARD_BIN", &programs.portguard);
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(rounds) = args.rounds {
        bench.arg("--rounds").arg(rounds.to_string());
    }
    let mut child =
        bench.stdout(Stdio::piped()).spawn().with_context(|| format!("starting `{}`", shown(&bench)))?;
    let stdout = child.stdout.take().context("the measuring program's stdout is missing")?;
    let mut record = Record::new(section);
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading the measuring program's samples")?;
        match record.take(&line) {
            Line::Kept => {}
            Line::Progress(text) => {
                say(format!("{section}: {text}, after {} s", started.elapsed().as_secs()))
            }
            Line::Other => println!("{line}"),
        }
    }
    let status = child.wait().context("waiting for the measuring program")?;
    if !status.success() {
        bail!("`{}` failed ({status}); its samples are not kept", shown(&bench));
    }
    Ok(record)
}

fn show(record: &Record) {
    for (title, cells) in table::tables(record) {
        println!("\n{title}\n{}", table::plain(&cells));
    }
    for note in &record.notes {
        println!("· {note}");
    }
    for (what, why) in &record.absent {
        println!("· not measured: {what}: {why}");
    }
}

fn keep(record: &Record, about: &Value, folder: &Path) -> Result<()> {
    let file = folder.join(format!("{}.json", record.section));
    fs::write(&file, format!("{:#}\n", record.to_json(about)))
        .with_context(|| format!("writing {}", file.display()))?;
    println!("· every sample: {}", file.display());
    for picture in picture::draw(record, folder)? {
        println!("· picture: {}", picture.display());
    }
    Ok(())
}
