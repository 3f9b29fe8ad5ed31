//! `portguard restart`

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroU16;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;

use anyhow::Context as _;
use clap::Args;
use guard_core::follow::Follow;
use guard_core::gate::{Gate, Outcome};
use guard_core::model::Instant;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, UsageError};
use super::free::free_ports;
use super::options::{self, BindOptions, EndingOptions, OutputOptions, TierOptions};
use super::output::Output;
use super::preset::PresetOptions;
use super::restart_unit::UnitOptions;
use super::rules::RuleOptions;
use super::through::{self, Given, SidecarOptions};
use crate::report::Context;
use crate::runtime::{Command, CommandError, Followed, Session, Tier, now, replace};

/// Frees the port, starts a command or a systemd unit and follows it until it listens.
///
/// `restart --port N -- CMD` runs CMD in the foreground. `restart UNIT` stops the unit by its own
/// service manager first and starts it by it again; its ports are those it listens on, unless they
/// are given. The report goes to standard error: standard output belongs to the command.
#[derive(Debug, Args)]
pub(super) struct Restart {
    #[command(flatten)]
    pub(super) unit: UnitOptions,
    /// TCP port of the service; repeat it for several
    #[arg(long, short, value_parser = options::parse_port, required_unless_present_any = ["restarted", "preset"])]
    pub(super) port: Vec<NonZeroU16>,
    #[command(flatten)]
    preset: PresetOptions,
    #[command(flatten)]
    pub(super) bind: BindOptions,
    #[command(flatten)]
    pub(super) output: OutputOptions,
    #[command(flatten)]
    pub(super) tier: TierOptions,
    #[command(flatten)]
    pub(super) ending: EndingOptions,
    /// Become the command instead of running it as a child, so that a wrapper keeps its PID
    #[arg(long, conflicts_with = "restarted")]
    exec: bool,
    #[command(flatten)]
    sidecar: SidecarOptions,
    #[command(flatten)]
    pub(super) rules: RuleOptions,
    /// The command, after --
    #[arg(
        last = true,
        required_unless_present = "restarted",
        conflicts_with = "restarted",
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

impl Restart {
    /// What a sidecar is asked for too.
    const ASKED: &[&str] = &["restarted", "user", "user_of", "json"];

    pub(super) async fn run(mut self, verbose: bool, given: &Given) -> anyhow::Result<Exit> {
        if let Some(named) = self.unit.named() {
            let output = |service: &str| {
                let (service, drain) = (service.to_owned(), self.ending.drain());
                let context = Context { service, command: "restart", dry_run: false, drain };
                Output::new(context, self.output.json, verbose, Box::new(std::io::stderr()))
            };
            let plain = given.only(Self::ASKED);
            if let Some(exit) = through::restart(&self.sidecar, named, plain, verbose, output).await {
                return Ok(exit);
            }
        }
        if let Some(name) = self.unit.name() {
            if self.preset.preset().is_some() {
                let why = "--preset goes with a command: a UNIT has its own processes and ports; its exit code is \
                           given by --already-running-code";
                return Err(UsageError(why.to_owned()).into());
            }
            return self.run_unit(&name, verbose).await;
        }
        self.rules = self.rules.with_preset(self.preset.preset());
        self.port = self.preset.ports(&self.port)?;
        let endpoints = self.bind.endpoints(&self.port)?;
        let mut session = self.tier.open(&endpoints).await?;
        let context = Context {
            service: options::name_of_ports(&self.port),
            command: "restart",
            dry_run: self.ending.dry_run,
            drain: self.ending.drain(),
        };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stderr()));
        let freed = free_ports(endpoints, &self.rules, &self.ending, &mut session, &mut output).await?;
        let gate = match freed {
            ControlFlow::Break(exit) => return Ok(exit),
            ControlFlow::Continue(gate) => gate,
        };
        let Some(outcome @ Outcome::Opened(_)) = gate.outcome() else {
            let outcome = gate.outcome().context("the run ended without an outcome")?;
            if let Outcome::Respawned(_) = outcome {
                return Ok(respawned(&gate, &session, &mut output));
            }
            output.ended(&gate, &session, outcome);
            return Ok(Exit::of_outcome(outcome));
        };
        if self.exec {
            output.ended(&gate, &session, outcome);
            let error = replace(&self.command);
            output.step(now(), "command_failed", None, &error.to_string());
            return Ok(Exit::CommandFailed);
        }
        self.supervise(&gate, session, &mut output).await
    }

    async fn supervise(
        &self,
        gate: &Gate,
        mut session: Session,
        output: &mut Output,
    ) -> anyhow::Result<Exit> {
        if let Output::Human(human) = output {
            human.ended(gate, session.tier(), session.shortfall());
        }
        let mut stop = StopSignals::new().context("cannot handle signals")?;
        let started = now();
        let mut command = match Command::start(&self.command) {
            Ok(command) => command,
            Err(error) => return Ok(failed(gate, session.tier(), output, &error.to_string())),
        };
        output.step(started, "command_started", command.pid(), &started_line(&command));
        let (mut ended, mut listened, mut asked_to_stop) = (None, false, false);
        tokio::select! {
            followed = session.follow(&mut command) => match followed? {
                Followed::Ended(end) => ended = Some(end),
                Followed::Found { found, at } => {
                    listened = true;
                    tell_found(output, found, at);
                }
                Followed::Nothing => {}
            },
            () = stop.next() => {
                asked_to_stop = true;
                command.terminate();
            }
        }
        // Nothing is observed any more: what it loaded must not outlast its use
        // for as long as the service runs.
        let tier = session.tier();
        drop(session);
        let ended = loop {
            if let Some(ended) = ended {
                break ended;
            }
            tokio::select! {
                end = command.wait() => ended = Some(end),
                () = stop.next() => {
                    asked_to_stop = true;
                    command.terminate();
                }
            }
        };
        // A service manager asks all processes of a unit at once: the command may
        // have ended before portguard heard of it.
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            () = stop.next() => asked_to_stop = true,
            () = std::future::ready(()) => {}
        }
        let already_runs = match (&ended, self.preset.preset()) {
            (Ok(status), Some(preset)) => {
                status.code() == Some(preset.expansion().already_runs)
                    && Session::is_listened_on(&gate.plan().endpoints)
            }
            _ => false,
        };
        Ok(tell_end(gate, tier, output, ended, End { listened, asked_to_stop, already_runs }))
    }
}

/// The signals that ask portguard to stop: the command is asked in its place.
struct StopSignals {
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    interrupt: Signal,
    /// A terminal sends SIGINT and SIGQUIT to the command as well.
    on_terminal: bool,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            on_terminal: std::io::stdin().is_terminal(),
        })
    }

    /// Resolves when the command is to be stopped. Cancel safe.
    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.hang_up.recv() => return,
                _ = self.quit.recv() => if !self.on_terminal { return },
                _ = self.interrupt.recv() => if !self.on_terminal { return },
            }
        }
    }
}

/// What is known of a command besides its exit status.
#[derive(Clone, Copy)]
struct End {
    /// Somebody listened while it was followed.
    listened: bool,
    /// portguard was asked to stop, and passed it on.
    asked_to_stop: bool,
    /// It says that a healthy instance is running, and somebody does listen.
    already_runs: bool,
}

/// `128 + SIGTERM`: how a shell tells of that signal.
const ENDED_BY_SIGTERM: i32 = 143;

fn tell_end(
    gate: &Gate,
    tier: Tier,
    output: &mut Output,
    ended: Result<std::process::ExitStatus, CommandError>,
    end: End,
) -> Exit {
    let as_asked = |status: std::process::ExitStatus| {
        end.asked_to_stop && (status.signal() == Some(15) || status.code() == Some(ENDED_BY_SIGTERM))
    };
    match ended {
        Ok(status) if end.already_runs => {
            let code = status.code().unwrap_or_default();
            let text = format!(
                "the command exited with code {code}: a healthy instance is running already, and the port is \
                 listened on; that is no crash, and nobody is ended"
            );
            output.step(now(), "already_running", None, &text);
            finish(gate, tier, output, Exit::Done, Some(text));
            Exit::Done
        }
        Ok(status) if status.success() || as_asked(status) => {
            let how = if status.success() { "exited with code 0" } else { "ended by SIGTERM, as asked" };
            let silent = if end.listened || end.asked_to_stop { "" } else { " and was never seen to listen" };
            output.step(now(), "command_ended", None, &format!("the command {how}{silent}"));
            finish(gate, tier, output, Exit::Done, None);
            Exit::Done
        }
        Ok(status) => {
            let why = match (status.code(), status.signal()) {
                (Some(code), _) => format!("the command exited with code {code}"),
                (None, Some(signal)) => format!("the command was ended by signal {signal}"),
                (None, None) => "the command failed".to_owned(),
            };
            failed(gate, tier, output, &why)
        }
        Err(error) => failed(gate, tier, output, &error.to_string()),
    }
}

fn failed(gate: &Gate, tier: Tier, output: &mut Output, why: &str) -> Exit {
    output.step(now(), "command_failed", None, why);
    finish(gate, tier, output, Exit::CommandFailed, Some(why.to_owned()));
    Exit::CommandFailed
}

fn finish(gate: &Gate, tier: Tier, output: &mut Output, exit: Exit, detail: Option<String>) {
    if let Output::Json(json) = output {
        let word = if exit == Exit::Done { "restarted" } else { "command_failed" };
        json.finished(now(), gate.timeline().began(), tier, word, exit.code(), detail);
    }
}

/// The service's own unit was faster: there is nothing left to start.
fn respawned(gate: &Gate, session: &Session, output: &mut Output) -> Exit {
    match output {
        Output::Human(human) => {
            human.ended(gate, session.tier(), session.shortfall());
            human.line("the service is back without the command, which is not started");
        }
        Output::Json(json) => {
            let (began, tier) = (gate.timeline().began(), session.tier());
            json.finished(now(), began, tier, "respawned", Exit::Done.code(), None);
        }
    }
    Exit::Done
}

fn started_line(command: &Command) -> String {
    command.pid().map_or_else(|| "command started".to_owned(), |pid| format!("command started as pid {pid}"))
}

fn tell_found(output: &mut Output, found: Follow, at: Instant) {
    match found {
        Follow::Listening(process) => {
            output.step(at, "listening", Some(process.tgid.0), &format!("pid {process} listens"));
        }
        Follow::Other(process) => output.step(
            at,
            "other_listens",
            Some(process.tgid.0),
            &format!("pid {process} listens, which does not descend from the command"),
        ),
        Follow::Hidden => output.step(at, "listening", None, "somebody listens; the owner is not visible"),
        Follow::NotYet => {}
    }
}
