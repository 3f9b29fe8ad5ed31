//! The command line: one file per subcommand.

mod check_config;
mod demo;
mod doctor;
mod exit;
mod free;
mod gate;
mod options;
mod output;
mod preset;
mod restart;
mod restart_unit;
mod rules;
mod run;
mod status;
mod through;
mod units;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use exit::Exit;

use crate::runtime::daemon::return_large_blocks;

/// Ends EADDRINUSE restart loops: sees who holds a port, ends the stale
/// holders, and opens a gate the instant the port is bindable.
#[derive(Debug, Parser)]
#[command(name = "portguard", version, after_help = exit::TABLE)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// More about what is going on, on standard error (-v, -vv, -vvv)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

// What the options of the others are takes longer to define than to parse one's own.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Say whether the port is bindable, who holds it, and who would be ended and why
    Status(status::Status),
    /// Wait until the port is bindable; never signals anyone
    Gate(gate::Gate),
    /// End the stale holders and wait until the port is bindable
    Free(free::Free),
    /// Free the port, then start a command or a systemd unit and follow it until it listens
    Restart(restart::Restart),
    /// Show a guarded restart of a stubborn stand-in gateway
    Demo(demo::Demo),
    /// Say which tier this machine gives and what is missing for a better one
    Doctor(doctor::Doctor),
    /// The sidecar: guard the configured services, answer over a Unix socket
    Run(run::Run),
    /// Show the services of the running sidecar, live
    Watch(watch::Watch),
    /// Check the sidecar's configuration file
    CheckConfig(check_config::CheckConfig),
    #[command(hide = true, name = demo::GATEWAY)]
    DemoGateway(demo::Gateway),
}

impl Command {
    /// The network namespace that it works in.
    const fn netns(&self) -> Option<&options::NetnsOptions> {
        match self {
            Self::Status(status) => Some(&status.service.bind.netns),
            Self::Gate(gate) => Some(&gate.service.bind.netns),
            Self::Free(free) => Some(&free.service.bind.netns),
            Self::Restart(restart) => Some(&restart.bind.netns),
            Self::Doctor(doctor) => Some(&doctor.netns),
            Self::Demo(_) | Self::DemoGateway(_) | Self::CheckConfig(_) | Self::Run(_) | Self::Watch(_) => {
                None
            }
        }
    }
}

/// Parses the arguments, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    return_large_blocks();
    let mut command = Arguments::command();
    let matches = command.get_matches_mut();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let given = through::Given::of(&command, &matches);
    // With every option's description, and a sidecar lives for weeks.
    drop((command, matches));
    start_logging(arguments.verbose);
    let verbose = arguments.verbose > 0;
    match run(arguments.command, verbose, &given) {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&whole(&error));
            exit::of_error(&error).into()
        }
    }
}

/// The error with its causes, each said once: many errors name their cause in
/// their own text.
fn whole(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

/// One line on standard error; nobody may be listening there either.
fn complain(what: &str) {
    drop(writeln!(std::io::stderr(), "portguard: {what}"));
}

fn run(command: Command, verbose: bool, given: &through::Given) -> anyhow::Result<Exit> {
    // Before anything that starts a thread: threads inherit the namespace.
    command.netns().map_or(Ok(()), options::NetnsOptions::enter)?;
    match command {
        // It forks, so it must stay single-threaded.
        Command::DemoGateway(gateway) => gateway.run(),
        Command::Doctor(doctor) => Ok(doctor.run()),
        Command::CheckConfig(check) => check.run(),
        Command::Run(run) => run.run(),
        Command::Watch(watch) => watch.run(),
        command => in_runtime(command, verbose, given),
    }
}

fn in_runtime(command: Command, verbose: bool, given: &through::Given) -> anyhow::Result<Exit> {
    // One thread: the path from an event to the open gate crosses no other.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        // For the answers of a sidecar; the runs of this command have a timer of their own.
        .enable_time()
        .build()
        .context("cannot start the event loop")?;
    let ended = runtime.block_on(async {
        match command {
            Command::Status(status) => status.run(verbose, given).await,
            Command::Gate(gate) => gate.run(verbose, given).await,
            Command::Free(free) => free.run(verbose, given).await,
            Command::Restart(restart) => restart.run(verbose, given).await,
            Command::Demo(demo) => demo.run(verbose).await,
            Command::Doctor(_)
            | Command::DemoGateway(_)
            | Command::CheckConfig(_)
            | Command::Run(_)
            | Command::Watch(_) => Ok(Exit::Done),
        }
    });
    // A BPF load that nobody waits for any more must not hold up the exit.
    runtime.shutdown_background();
    ended
}

fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("PORTGUARD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour =
        std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_argument_parser_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
