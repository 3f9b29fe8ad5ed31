//! What a service manager says about a unit, in words and as a body.

use std::time::Duration;

use guard_core::model::{KillMode, Manager, Unit};
use guard_core::restart::{Ahead, End, MainExit, Restart, UnitDetails};
use schemars::JsonSchema;
use serde::Serialize;

use super::outcome_code;
use super::words::{self, span};

/// The `unit` of a `run_step`, in systemd's own names.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct UnitBody {
    name: String,
    /// `system`, or the number of the user whose manager it is.
    manager: String,
    active_state: String,
    sub_state: String,
    main_pid: Option<u32>,
    control_group: Option<String>,
    kill_mode: &'static str,
    timeout_stop_ms: Option<u64>,
    send_sigkill: bool,
    restart: String,
    n_restarts: u32,
    result: String,
    /// How the last main process ended.
    exec_main_code: Option<&'static str>,
    exec_main_status: Option<i32>,
}

pub(super) fn body(unit: &Unit, details: &UnitDetails) -> UnitBody {
    let (exec_main_code, exec_main_status) = match details.main_exit {
        Some(MainExit::Code(code)) => (Some("exited"), Some(code)),
        Some(MainExit::Signal(signal)) => (Some("killed"), Some(signal)),
        None => (None, None),
    };
    UnitBody {
        name: unit.name.to_string(),
        manager: match unit.manager {
            Manager::System => "system".to_owned(),
            Manager::User(uid) => uid.to_string(),
        },
        active_state: unit.active_state.name().to_owned(),
        sub_state: details.sub_state.clone(),
        main_pid: unit.main_pid.map(|main| main.tgid.0),
        control_group: unit.control_group.clone(),
        kill_mode: kill_mode(unit.kill_mode),
        timeout_stop_ms: unit.timeout_stop.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        send_sigkill: details.send_sigkill,
        restart: unit.restart.clone(),
        n_restarts: unit.n_restarts,
        result: unit.result.clone(),
        exec_main_code,
        exec_main_status,
    }
}

const fn kill_mode(mode: KillMode) -> &'static str {
    match mode {
        KillMode::ControlGroup => "control-group",
        KillMode::Mixed => "mixed",
        KillMode::Process => "process",
        KillMode::None => "none",
    }
}

/// One line about the unit: its state, and what its stop and its end lead to.
pub fn unit_words(unit: &Unit, details: &UnitDetails) -> String {
    let whose = match unit.manager {
        Manager::System => String::new(),
        Manager::User(uid) => format!(" of user {uid}"),
    };
    let main = unit.main_pid.map(|main| format!(", main pid {main}")).unwrap_or_default();
    let result = if unit.result == "success" { String::new() } else { format!(", Result={}", unit.result) };
    let exit = match details.main_exit {
        Some(exit) if unit.main_pid.is_none() => format!(", its last main process {exit}"),
        _ => String::new(),
    };
    let stop = unit.timeout_stop.map_or_else(|| "no limit".to_owned(), |limit: Duration| span(limit));
    let restarts = if unit.n_restarts == 0 { String::new() } else { format!(", {} so far", unit.n_restarts) };
    format!(
        "{}{whose} is {} ({}){main}{result}{exit}; TimeoutStopSec={stop}, KillMode={}, Restart={}{restarts}",
        unit.name,
        unit.active_state.name(),
        details.sub_state,
        kill_mode(unit.kill_mode),
        unit.restart,
    )
}

/// What a reader should know about this unit before it is stopped.
pub fn unit_notes(unit: &Unit, details: &UnitDetails) -> Vec<String> {
    let mut notes = Vec::new();
    match unit.kill_mode {
        KillMode::Process => notes.push(
            "KillMode=process: systemd ends only its main process; whoever else of its cgroup keeps the port is \
             ended by portguard"
                .to_owned(),
        ),
        KillMode::None => notes.push(
            "KillMode=none: systemd ends nobody; whoever of its cgroup keeps the port is ended by portguard".to_owned(),
        ),
        KillMode::ControlGroup | KillMode::Mixed => {}
    }
    if !details.send_sigkill {
        notes.push(
            "SendSIGKILL=no: systemd leaves whoever ignores SIGTERM; portguard ends who keeps the port"
                .to_owned(),
        );
    }
    if !details.stopped_along.is_empty() {
        notes.push(format!(
            "stopped along with it, and not started again with it: {}",
            details.stopped_along.join(", ")
        ));
    }
    notes
}

/// How a unit's restart ended: the stable word, and for whoever asks why it failed.
pub fn restart_end(restart: &Restart, end: &End) -> (&'static str, Option<String>) {
    let word = match end {
        End::GateShut(outcome) => outcome_code(outcome),
        other => other.code(),
    };
    if matches!(end, End::Restarted(_)) {
        return (word, None);
    }
    let mut text = end.to_string();
    if let End::NotBegun(ahead) = end {
        text = format!("{text}: {}", why_not_begun(ahead));
    } else if let Some((unit, details)) = restart.unit() {
        text = format!("{text}; {}", unit_words(unit, details));
        if let Some(command) = journal(unit, end) {
            text = format!("{text}; see: {command}");
        }
    }
    (word, Some(text))
}

fn why_not_begun(ahead: &Ahead) -> String {
    let list = |processes: Vec<String>| processes.join("; ");
    match ahead {
        Ahead::Clear => "nobody is in the way".to_owned(),
        Ahead::Refused(refused) => {
            list(refused.iter().map(|(id, why)| format!("pid {id} is {}", words::judgement(why))).collect())
        }
        Ahead::NotPermitted(processes) => {
            list(processes.iter().map(|id| format!("portguard may not signal pid {id}")).collect())
        }
        Ahead::Unknown(reason) => words::unknown(reason),
    }
}

/// Where a person reads on after a unit failed.
pub fn journal(unit: &Unit, end: &End) -> Option<String> {
    let failed = matches!(end, End::NotStarted(_) | End::Died(_) | End::Silent | End::Rival { .. });
    failed.then(|| match unit.manager {
        Manager::System => format!("journalctl -e -u {}", unit.name),
        Manager::User(uid) => format!("journalctl -e _UID={uid} USER_UNIT={}", unit.name),
    })
}
