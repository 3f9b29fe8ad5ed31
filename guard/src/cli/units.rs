//! What service managers say about the units that a command meets.

use std::time::Duration;

use guard_core::gate::{Decision, Gate, Plan};
use guard_core::model::{ActiveState, Manager, ProcessId, Unit, UnitId};
use guard_core::policy::UnitState;
use guard_core::restart;
use tracing::debug;

use super::output::Output;
use crate::runtime::{Session, ask_about, asker, own_uid};

/// Asks about the units that the plan's rules name. Who cannot be asked leaves
/// the unit's processes protected.
pub(super) async fn ask(plan: &mut Plan) {
    let own = own_uid();
    let own = (own.0 != 0).then_some(Manager::User(own));
    for rule in &mut plan.rules.units {
        if !matches!(rule.state, UnitState::Unknown(_)) {
            continue;
        }
        for manager in own.into_iter().chain([Manager::System]) {
            match ask_about(manager, &rule.name).await {
                Ok((unit, _)) => {
                    // Another manager's unit of that name is another unit.
                    rule.manager = Some(manager);
                    rule.state = UnitState::Known(unit);
                    break;
                }
                Err(error) => rule.state = UnitState::Unknown(error.to_string()),
            }
        }
    }
}

/// Which of the processes that would be ended their service managers would start
/// again at once: ending them would free the port for a moment, and for a rival.
///
/// SIGTERM is a clean end to systemd, so `Restart=on-failure` is none of those.
async fn respawning(gate: &Gate) -> Vec<(ProcessId, Unit)> {
    let Some(Decision::End(stale)) = gate.decision() else { return Vec::new() };
    let mut found: Vec<(ProcessId, Unit)> = Vec::new();
    for (id, _) in stale {
        let owners = gate.holders().iter().flat_map(|holder| &holder.owners);
        let evidence = owners.filter(|owner| owner.id == id).find_map(|owner| owner.process.as_ref());
        let Some(process) = evidence else { continue };
        let Some(UnitId { manager, name }) = process.unit().filter(UnitId::is_service) else { continue };
        match ask_about(manager, &name).await {
            Ok((unit, _)) => {
                let runs = !matches!(
                    unit.active_state,
                    ActiveState::Inactive | ActiveState::Failed | ActiveState::Deactivating
                );
                if runs && matches!(unit.restart.as_str(), "always" | "on-success") {
                    found.push((id, unit));
                }
            }
            Err(error) => debug!(%error, "cannot tell whether a unit would be started again"),
        }
    }
    found
}

/// The longest time from SIGTERM to SIGKILL of the units that the plan's rules name, where their manager told it.
pub(super) fn longest_stop_budget(plan: &Plan) -> Option<Duration> {
    let known = plan.rules.units.iter().filter_map(|rule| match &rule.state {
        UnitState::Known(unit) => Some(restart::drain(unit)),
        UnitState::NoManager | UnitState::Unknown(_) => None,
    });
    known.max()
}

/// What was found before anybody is ended, where a service manager may start again whom a run ends.
pub(super) struct Foreseen {
    /// The look.
    pub(super) gate: Gate,
    /// Why each of those would be started again at once, and what to do instead.
    pub(super) supervised: Vec<String>,
}

/// Looks whom the run would end, and asks about their units; `None` where nobody starts anybody.
pub(super) async fn foresee(
    session: &mut Session,
    mut plan: Plan,
    output: &mut Output,
) -> anyhow::Result<Option<Foreseen>> {
    if !asker::service_manager_runs() {
        return Ok(None);
    }
    ask(&mut plan).await;
    let gate = session.run(plan, output).await?;
    let supervised = respawning(&gate).await;
    let supervised = supervised.iter().map(|(id, unit)| advice(*id, unit)).collect();
    Ok(Some(Foreseen { gate, supervised }))
}

/// Why, and what to do instead.
fn advice(id: ProcessId, unit: &Unit) -> String {
    let (name, restart) = (&unit.name, &unit.restart);
    let (whose, stop) = match unit.manager {
        Manager::System => (String::new(), format!("systemctl stop {name}")),
        Manager::User(uid) if uid == own_uid() => {
            (" --user".to_owned(), format!("systemctl --user stop {name}"))
        }
        Manager::User(uid) => {
            (format!(" --user-of {uid}"), format!("systemctl --user --machine {uid}@ stop {name}"))
        }
    };
    format!(
        "pid {id} is of {name}, which systemd would start again at once (Restart={restart}): use portguard restart \
         {name}{whose}, or first {stop}"
    )
}
