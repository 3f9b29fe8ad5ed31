//! After the gate: a command starts the service, and is followed until somebody listens.

use std::process::ExitStatus;

use guard_core::follow::Follow;
use guard_core::model::Tgid;
use tracing::debug;

use super::batch::Asked;
use super::run::Starting;
use super::{End, Engine, RunNumber, Start, Witness, look_for_listener};
use crate::act::{Command, CommandError};
use crate::runtime::now;

/// What the sidecar's own service manager told the sidecar: a command that took it
/// for its own could call itself ready, or feed a watchdog, in the sidecar's place.
const OUR_OWN: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

impl<W: Witness> Engine<W> {
    /// The gate is open: starts the service.
    pub(super) fn start(&mut self, number: RunNumber) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let Some(Start::Command(argv)) = &run.info.service.start else {
            return self.finish(number, |_| End::StartFailed("there is no command to start it".to_owned()));
        };
        let began = now();
        let mut command = match Command::start_without(argv, &OUR_OWN) {
            Ok(command) => command,
            Err(error) => return self.finish(number, |_| End::StartFailed(error.to_string())),
        };
        let pid = command.pid();
        let text =
            pid.map_or_else(|| "command started".to_owned(), |pid| format!("command started as pid {pid}"));
        self.witness.step(&run.info, began, "command_started", pid, text);
        run.starting = Some(Starting {
            command: Tgid(pid.unwrap_or(0)),
            deadline: began + run.info.service.start_budget,
            since: began,
            look_at: began,
            looking: false,
        });
        self.commands.spawn(async move { (number, command.wait().await) });
    }

    pub(super) fn command_ended(&mut self, number: RunNumber, status: Result<ExitStatus, CommandError>) {
        let Some(run) = self.runs.get_mut(&number) else {
            debug!(?status, "a command outlived its run and has ended");
            return;
        };
        match status {
            // It may have handed the start to somebody else, such as a service manager.
            Ok(status) if status.success() => {
                let text = "the command exited with code 0".to_owned();
                self.witness.step(&run.info, now(), "command_ended", None, text);
                run.hasten();
            }
            Ok(status) => self.finish(number, |_| End::StartFailed(format!("the command failed: {status}"))),
            Err(error) => self.finish(number, |_| End::StartFailed(error.to_string())),
        }
    }

    /// Looks whether the service listens again, when it is time to.
    pub(super) fn follow(&mut self, number: RunNumber) {
        let at = now();
        let Some(run) = self.runs.get_mut(&number) else { return };
        let Some(starting) = &mut run.starting else { return };
        if starting.deadline <= at {
            let budget = run.info.service.start_budget;
            return self
                .finish(number, |_| End::StartFailed(format!("nobody listens {budget:?} after the start")));
        }
        if starting.looking || starting.look_at > at {
            return;
        }
        let listening;
        (listening, starting.look_at) =
            look_for_listener(&self.doors.observer, &run.ports, starting.since, self.look_took);
        if listening {
            starting.looking = true;
            let ports = run.ports.clone();
            self.looks.ask(Asked { key: number, ports, also: Vec::new(), learn: false, everybody: false });
        }
    }
}

pub(super) fn found_words(found: Follow) -> (&'static str, Option<u32>, String) {
    match found {
        Follow::Listening(process) => ("listening", Some(process.tgid.0), format!("pid {process} listens")),
        Follow::Other(process) => (
            "other_listens",
            Some(process.tgid.0),
            format!("pid {process} listens, which does not descend from the command"),
        ),
        Follow::Hidden | Follow::NotYet => {
            ("listening", None, "somebody listens; the owner is not visible".to_owned())
        }
    }
}
