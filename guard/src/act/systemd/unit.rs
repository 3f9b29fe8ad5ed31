//! A unit's properties in the core's words.

use std::collections::HashMap;
use std::time::Duration;

use guard_core::model::{ActiveState, KillMode, Manager, ProcessId, Tgid, Unit, UnitName};
use guard_core::restart::{MainExit, UnitDetails};
use zbus::OwnedVariant;

use crate::kernel::procfs;

/// `a{sv}`, as `GetAll` answers.
type Properties = HashMap<String, OwnedVariant>;

/// Why the manager has no such unit, in words; `None` when it has.
pub(super) fn why_not_loaded(general: &Properties) -> Option<String> {
    let state = text(general, "LoadState")?;
    match state.as_str() {
        "loaded" | "merged" => None,
        "masked" => Some("it is masked".to_owned()),
        "not-found" => Some("it has no unit file".to_owned()),
        other => Some(format!("its load state is {other}; systemctl status says why")),
    }
}

/// The model, or the property that is missing.
pub(super) fn read(
    manager: Manager,
    general: &Properties,
    service: &Properties,
) -> Result<(Unit, UnitDetails), &'static str> {
    let main_pid: u32 = get(service, "MainPID").ok_or("MainPID (it is no service)")?;
    let timeout: u64 = get(service, "TimeoutStopUSec").ok_or("TimeoutStopUSec")?;
    let unit = Unit {
        name: UnitName::new(&text(general, "Id").ok_or("Id")?),
        manager,
        main_pid: identified(main_pid, manager),
        control_group: text(service, "ControlGroup")
            .filter(|path| !path.is_empty() && may_speak_for(manager, path)),
        kill_mode: match text(service, "KillMode").ok_or("KillMode")?.as_str() {
            "process" => KillMode::Process,
            "mixed" => KillMode::Mixed,
            "none" => KillMode::None,
            _ => KillMode::ControlGroup,
        },
        // USEC_INFINITY
        timeout_stop: (timeout != u64::MAX).then(|| Duration::from_micros(timeout)),
        restart: text(service, "Restart").ok_or("Restart")?,
        active_state: ActiveState::from_name(&text(general, "ActiveState").ok_or("ActiveState")?),
        n_restarts: get(service, "NRestarts").unwrap_or(0),
        result: text(service, "Result").ok_or("Result")?,
    };
    let details = UnitDetails {
        sub_state: text(general, "SubState").unwrap_or_default(),
        send_sigkill: get(service, "SendSIGKILL").unwrap_or(true),
        main_exit: main_exit(service),
        sockets: texts(general, "TriggeredBy").into_iter().filter(|name| name.ends_with(".socket")).collect(),
        stopped_along: ["RequiredBy", "BoundBy", "ConsistsOf"]
            .into_iter()
            .flat_map(|property| texts(general, property))
            .collect(),
    };
    Ok((unit, details))
}

/// A user's manager, or whoever answers on the user's bus in its place, speaks
/// for what is below its own unit (`user@7.service`), and for nobody else's
/// processes: who is in a unit's cgroup may be ended.
fn may_speak_for(manager: Manager, path: &str) -> bool {
    match manager {
        Manager::System => true,
        Manager::User(uid) => path.split('/').any(|part| part == format!("user@{uid}.service")),
    }
}

/// How the last main process ended; `None` while it runs, and before there was one.
fn main_exit(service: &Properties) -> Option<MainExit> {
    // CLD_EXITED, CLD_KILLED and CLD_DUMPED of siginfo.
    let (code, status): (i32, i32) = (get(service, "ExecMainCode")?, get(service, "ExecMainStatus")?);
    match code {
        1 => Some(MainExit::Code(status)),
        2 | 3 => Some(MainExit::Signal(status)),
        _ => None,
    }
}

/// The process that has this number now: a manager tells numbers only.
fn identified(pid: u32, manager: Manager) -> Option<ProcessId> {
    let tgid = Some(Tgid(pid)).filter(|_| pid != 0)?;
    match manager {
        Manager::System => {
            let start = procfs::start_time(tgid).ok().flatten()?;
            Some(ProcessId { tgid, start })
        }
        Manager::User(_) => {
            let process = procfs::process(tgid).ok().flatten()?;
            may_speak_for(manager, process.cgroup.as_deref()?).then_some(process.id)
        }
    }
}

fn get<T>(properties: &Properties, name: &str) -> Option<T>
where
    T: TryFrom<OwnedVariant>,
{
    properties.get(name)?.try_clone().ok()?.try_into().ok()
}

fn text(properties: &Properties, name: &str) -> Option<String> {
    get(properties, name)
}

fn texts(properties: &Properties, name: &str) -> Vec<String> {
    get(properties, name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use guard_core::model::Uid;

    use super::*;

    #[test]
    fn a_users_manager_speaks_for_nobody_elses_processes() {
        let user = Manager::User(Uid(7));
        let own = "/user.slice/user-7.slice/user@7.service/app.slice/x.service";
        assert!(may_speak_for(user, own) && may_speak_for(Manager::System, "/system.slice/x.service"));
        // In a container whose cgroups are seen from outside.
        assert!(may_speak_for(user, &format!("/docker/0123{own}")));
        for foreign in [
            "/system.slice/sshd.service",
            "/user.slice/user-8.slice/user@8.service/app.slice/x.service",
            "/user.slice/user-7.slice/session-1.scope",
            "/",
        ] {
            assert!(!may_speak_for(user, foreign), "{foreign}");
        }
    }
}
