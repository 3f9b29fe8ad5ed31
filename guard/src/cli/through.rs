//! One-shot commands through a running sidecar: it has everything loaded and attached already, and
//! may know owners that this user may not see.

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use guard_core::model::{BindOutcome, BindSpec, Manager, UnitName};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::complain;
use super::exit::{Exit, UsageError};
use super::output::{Output, Through};
use crate::client::look::Look;
use crate::client::through::{Command, Door, Followed, NotBegun, Run, Served, Unfit, Waited};
use crate::report::notes;
use crate::report::span;
use crate::runtime::{now, probe};
use crate::sidecar::config::SOCKET;

/// A shorter wait is not worth asking for.
const SHORTEST: Duration = Duration::from_millis(100);

/// Whether a running sidecar may be asked, and which.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "A running sidecar")]
pub(super) struct SidecarOptions {
    /// Go through the sidecar at this socket, if it serves exactly this
    /// [default: /run/portguard/portguard.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "no_sidecar")]
    socket: Option<PathBuf>,
    /// Go through no sidecar, even if one serves exactly this
    #[arg(long)]
    no_sidecar: bool,
}

impl SidecarOptions {
    fn door(&self) -> Option<Door> {
        let socket = || self.socket.clone().unwrap_or_else(|| SOCKET.into());
        (!self.no_sidecar).then(|| Door { socket: socket(), named: self.socket.is_some() })
    }

    /// Says to whoever named a sidecar that it is not asked.
    pub(super) fn decline(&self, why: &str) {
        if let Some(door) = self.door() {
            say_why(&door, false, &why);
        }
    }

    /// The service with exactly these endpoints. `plain`: nothing was asked for that the sidecar
    /// knows nothing of.
    pub(super) async fn serving(&self, endpoints: &[BindSpec], plain: bool, verbose: bool) -> Option<Served> {
        let door = self.door()?;
        if !plain {
            say_why(&door, verbose, &"its options are not what a sidecar is asked for");
            return None;
        }
        match door.serves(endpoints).await {
            Ok(served) => Some(served),
            Err(why) => {
                unfit(&door, verbose, &why);
                None
            }
        }
    }
}

/// Which options were given on the command line.
#[derive(Debug)]
pub(super) struct Given(Vec<String>);

impl Given {
    /// Those of the subcommand that was chosen.
    pub(super) fn of(command: &clap::Command, matches: &ArgMatches) -> Self {
        let Some((name, matches)) = matches.subcommand() else { return Self(Vec::new()) };
        let arguments = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let ids = arguments.map(|argument| argument.get_id().to_string());
        Self(ids.filter(|id| is_given(id)).collect())
    }

    /// Nothing but these, and how to reach a sidecar.
    pub(super) fn only(&self, these: &[&str]) -> bool {
        let expected =
            |id: &String| these.contains(&id.as_str()) || ["socket", "verbose"].contains(&id.as_str());
        self.0.iter().all(expected)
    }
}

/// Why it is done here. Nobody who did not ask for a sidecar is told that there is none.
fn unfit(door: &Door, verbose: bool, why: &Unfit) {
    if door.named || !why.is_absence() {
        say_why(door, verbose, why);
    }
}

fn say_why(door: &Door, verbose: bool, why: &dyn std::fmt::Display) {
    if door.named || verbose {
        complain(&format!("not through the sidecar: {why}"));
    }
}

fn announce(through: &Through) {
    complain(&format!("through the sidecar at {}: service {}", through.socket, through.service));
}

fn specs(endpoints: &[BindSpec]) -> Value {
    let spec = |spec: &BindSpec| {
        json!({ "address": spec.address, "port": spec.port.get(), "v6only": spec.v6only,
            "reuse_address": spec.reuse_address, "reuse_port": spec.reuse_port })
    };
    endpoints.iter().map(spec).collect()
}

fn snapshot(output: &mut Output, through: &Through, look: &Look) {
    let mut event = look.value.clone();
    if let Value::Object(event) = &mut event {
        event.insert("type".to_owned(), "snapshot".into());
    }
    output.relay(through, now(), event);
}

/// How `gate` goes on.
pub(super) enum Gated {
    /// It has ended.
    Ended(Exit),
    /// The sidecar did not say how: there is so much time left.
    Left(Duration),
}

/// `portguard gate`
pub(super) async fn gate(
    mut served: Served,
    endpoints: &[BindSpec],
    timeout: Duration,
    output: &mut Output,
) -> Gated {
    if timeout < SHORTEST {
        return Gated::Left(timeout);
    }
    let through = Through::new(served.name(), served.socket(), served.tier());
    announce(&through);
    output.through_began(&through, "gate", specs(endpoints));
    let names: Vec<String> = endpoints.iter().map(BindSpec::to_string).collect();
    let names = names.join(" and ");
    let looker = served.looker();
    let waited = {
        let mut gate = std::pin::pin!(served.gate(timeout));
        tokio::select! {
            biased;
            waited = &mut gate => waited,
            look = looker.look() => {
                if let Ok(look) = look && look.exit() == Some(Exit::StillBusy) {
                    output.moment(now(), &format!("busy: {names}"));
                    output.lines(look.holders(false));
                    snapshot(output, &through, &look);
                }
                gate.await
            }
        }
    };
    match waited {
        Waited::Opened { .. } if probe(endpoints).contains(&BindOutcome::InUse) => {
            complain("the sidecar's gate is open and the port is in use; going on without the sidecar");
            Gated::Left(timeout.saturating_sub(now().since(through.began)).max(SHORTEST))
        }
        Waited::Opened { probed, release_latency } => {
            output.through_opened(&through, &names, specs(endpoints), probed, release_latency);
            Gated::Ended(Exit::Done)
        }
        Waited::StillBusy => {
            // Only who holds it now is an answer; anything else is for this command to find out.
            let Ok(look) = looker.look().await else { return Gated::Left(SHORTEST) };
            if look.exit() != Some(Exit::StillBusy) || look.is_unexplained() {
                return Gated::Left(SHORTEST);
            }
            output.lines([format!("still busy: {names} was not bindable within {}", span(timeout))]);
            output.lines(look.holders(false));
            snapshot(output, &through, &look);
            output.notes(notes::around(look.ports(), look.owners()));
            output.through_ended(&through, "still_busy", Exit::StillBusy, None);
            Gated::Ended(Exit::StillBusy)
        }
        Waited::Unanswered(why) => {
            complain(&format!("{why}; going on without the sidecar"));
            Gated::Left(timeout.saturating_sub(now().since(through.began)).max(SHORTEST))
        }
    }
}

/// `portguard status`; `None`: it is for this command to find out.
pub(super) async fn status(
    served: &Served,
    endpoints: &[BindSpec],
    verbose: bool,
    output: &mut Output,
) -> Option<Exit> {
    let through = Through::new(served.name(), served.socket(), served.tier());
    let look = match served.looker().look().await {
        Ok(look) => look,
        Err(why) => {
            if verbose {
                complain(&format!("{why}; going on without the sidecar"));
            }
            return None;
        }
    };
    if look.is_unexplained() {
        return None;
    }
    let exit = look.exit()?;
    announce(&through);
    output.through_began(&through, "status", specs(endpoints));
    output.lines(look.lines());
    snapshot(output, &through, &look);
    output.notes(notes::around(look.ports(), look.owners()));
    output.through_ended(&through, "looked", exit, None);
    Some(exit)
}

/// What `portguard restart NAME` names: a service, or a unit.
#[derive(Clone, Copy)]
pub(super) struct Named<'n> {
    pub(super) name: &'n str,
    /// It can only be a unit of this one.
    pub(super) manager: Option<Manager>,
}

/// `portguard restart NAME`; `None`: it is no service of a running sidecar. `plain`: nothing was
/// asked for that the sidecar knows nothing of.
pub(super) async fn restart(
    options: &SidecarOptions,
    Named { name, manager }: Named<'_>,
    plain: bool,
    verbose: bool,
    output: impl FnOnce(&str) -> Output,
) -> Option<Exit> {
    let door = options.door()?;
    let served = match door.named(name, manager).await {
        Ok(served) => served,
        Err(why) => {
            unfit(&door, verbose, &why);
            return None;
        }
    };
    if !plain {
        say_why(
            &door,
            verbose,
            &format!("its service {} is restarted as it is configured, without options", served.name()),
        );
        return None;
    }
    if !served.can_restart() {
        say_why(&door, verbose, &format!("nothing says how its service {} is started", served.name()));
        return None;
    }
    let by_name = manager.is_none() && served.name() == name;
    let unit = UnitName::new(name);
    let through = Through::new(served.name(), served.socket(), served.tier());
    announce(&through);
    if by_name && !name.contains('.') && !served.is_unit(&unit) {
        complain(&format!("(a systemd unit of that name is restarted by `portguard restart {unit}`)"));
    }
    match served.begin(Command::Restart).await {
        Ok(run) => Some(follow(run, &through, verbose, &mut output(&through.service)).await),
        // Who names a unit may be allowed to restart it by its manager, such as one of his own.
        Err(NotBegun::Forbidden(why)) if !by_name => {
            complain(&format!("{why}; going on without the sidecar"));
            None
        }
        Err(NotBegun::NoRestart(why)) => {
            say_why(&door, verbose, &why);
            None
        }
        Err(why) => Some(not_begun(Command::Restart, name, why)),
    }
}

/// `portguard free NAME`: as the sidecar's service of that name is configured.
///
/// # Errors
///
/// When no sidecar may be asked, or none has such a service.
pub(super) async fn free(
    options: &SidecarOptions,
    name: &str,
    verbose: bool,
    output: impl FnOnce(&str) -> Output,
) -> anyhow::Result<Exit> {
    let alone = "without one: portguard free --port N, with a rule such as --match";
    let Some(door) = options.door() else {
        let why = format!(
            "{name} is meant as a service of a running sidecar, which --no-sidecar rules out; {alone}"
        );
        return Err(UsageError(why).into());
    };
    let served = match door.named(name, None).await {
        Ok(served) => served,
        Err(why @ (Unfit::OtherName(_) | Unfit::Several { .. })) => {
            return Err(UsageError(format!("cannot free {name}: {why}; {alone}")).into());
        }
        Err(why) => {
            complain(&format!("cannot free {name}: {why}; {alone}"));
            return Ok(if why.is_denied() { Exit::NotPermitted } else { Exit::Unknown });
        }
    };
    let through = Through::new(served.name(), served.socket(), served.tier());
    announce(&through);
    match served.begin(Command::Free).await {
        Ok(run) => Ok(follow(run, &through, verbose, &mut output(&through.service)).await),
        Err(why) => Ok(not_begun(Command::Free, name, why)),
    }
}

/// Says why there is nothing to follow.
fn not_begun(command: Command, name: &str, why: NotBegun) -> Exit {
    let command = command.name();
    match why {
        NotBegun::Forbidden(why) => {
            complain(&why);
            Exit::NotPermitted
        }
        NotBegun::IsUnit(why) | NotBegun::NoRestart(why) => {
            complain(&format!("the {command} of {name} was refused: {why}"));
            Exit::Refused
        }
        NotBegun::NotAsked(why) => {
            complain(&format!("the {command} of {name} has not begun: {why}"));
            Exit::Unknown
        }
        NotBegun::Unknown(why) => {
            complain(&format!(
                "{why}; it is not known whether the {command} of {name} had begun, and no other is tried: \
                 see `portguard status` and the sidecar's log"
            ));
            Exit::Unknown
        }
        NotBegun::Unfollowed { run, why } => {
            complain(&format!(
                "the {command} of {name} is under way as run {run} and cannot be followed: {why}; \
                 see `portguard status` and the sidecar's log"
            ));
            Exit::Unknown
        }
    }
}

async fn follow(mut run: Run, through: &Through, verbose: bool, output: &mut Output) -> Exit {
    let command = run.command.name();
    if run.joined {
        complain(&format!("joined {command} {}, which was under way", run.run));
    }
    // Without these the command would end at once, and say nothing of what goes on.
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt()).ok(), signal(SignalKind::terminate()).ok());
    let asked = async |signal: &mut Option<tokio::signal::unix::Signal>| match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    };
    loop {
        let next = tokio::select! {
            next = run.next() => next,
            () = asked(&mut interrupt) => return left(&run, through, output),
            () = asked(&mut terminate) => return left(&run, through, output),
        };
        match next {
            Ok(Followed::Event { event, words, at, minor }) => {
                output.relay(through, at, event);
                if verbose || !minor {
                    output.moment(at, &words);
                }
            }
            Ok(Followed::Ended { event, words, at, exit_code }) => {
                output.relay(through, at, event);
                output.moment(at, &words);
                return Exit::of_code(exit_code).unwrap_or(Exit::Unknown);
            }
            Err(error) => {
                let text = format!(
                    "{error}; how {command} {} ended is not known, and no other is tried: see `portguard status` and \
                     the sidecar's log",
                    run.run
                );
                output.lines([text.clone()]);
                output.through_ended(through, "unknown", Exit::Unknown, Some(&text));
                return Exit::Unknown;
            }
        }
    }
}

/// Somebody does not want to wait for the end.
fn left(run: &Run, through: &Through, output: &mut Output) -> Exit {
    let text =
        format!("{} {} goes on in the sidecar; `portguard watch` shows it", run.command.name(), run.run);
    output.lines([text.clone()]);
    output.through_ended(through, "left", Exit::Unknown, Some(&text));
    Exit::Unknown
}
