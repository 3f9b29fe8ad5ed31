//! Development commands of portguard; `cargo xtask help` lists them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod build_ebpf;
mod cargo_json;
mod check;
mod facts;
mod layer_check;
mod layers;
mod linker;
mod process;
mod run;
mod setup;
mod source;
mod suite;
mod test;
mod toolchain;
mod traces;
mod vm;
mod vm_test;
mod workspace;

/// Builds, runs and tests portguard. New here? `cargo xtask run` does everything.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build portguard and run it: the demo, or `-- ARGS` of your own
    Run(run::Args),
    /// Run every test; the last line says how many passed, failed and were skipped
    Test(test::Args),
    /// Run the end-to-end tests on other kernels: Debian's, from 5.10 to the newest, in QEMU
    VmTest(vm_test::Args),
    /// Judge without running: format, clippy, docs, the layer rules, no traces of a machine
    Check,
    /// Build portguard with its BPF programs
    Build(build::Args),
    /// Build only the BPF programs that portguard embeds
    BuildEbpf(build_ebpf::Args),
    /// Measure portguard beside what people use today: a table, JSON and pictures; judges nothing
    Bench(bench::Args),
    /// Install what the builds and the tests need (the other commands do it by themselves)
    Setup(setup::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = |()| ExitCode::SUCCESS;
    let result = workspace::Workspace::find().and_then(|workspace| match &cli.command {
        Command::Run(args) => run::command(&workspace, args).map(done),
        Command::Test(args) => test::command(&workspace, args),
        Command::VmTest(args) => vm_test::command(&workspace, args),
        Command::Check => check::command(&workspace),
        Command::Build(args) => build::command(&workspace, args).map(done),
        Command::BuildEbpf(args) => build_ebpf::command(&workspace, args).map(done),
        Command::Bench(args) => bench::command(&workspace, args).map(done),
        Command::Setup(args) => setup::command(&workspace, args).map(done),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            process::say(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
