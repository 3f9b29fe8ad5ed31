//! `portguard restart UNIT`

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use guard_core::model::{BindSpec, Manager, Uid, Unit, UnitName};
use guard_core::policy::{Asker, UnitRule, UnitState};
use guard_core::restart::{Ahead, Plan, UnitDetails, drain, longest_stop};

use super::exit::{Exit, UsageError};
use super::free::rehearsed;
use super::options;
use super::output::Output;
use super::restart::Restart;
use super::through::Named;
use super::units;
use crate::report::{Context, unit_notes};
use crate::runtime::spelling::parse_user;
use crate::runtime::{Plans, UnitDoor, listeners_of, now, own_uid};

/// Which unit is restarted, and whose it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restarting a systemd unit")]
pub(super) struct UnitOptions {
    /// The unit to restart, in place of a command; without a suffix it is a service
    #[arg(value_name = "UNIT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    restarted: Option<String>,
    /// It is a unit of your own manager (systemctl --user)
    #[arg(long, requires = "restarted")]
    user: bool,
    /// It is a unit of this user's own manager, by name or number; as root
    #[arg(long, requires = "restarted", value_name = "USER", value_parser = parse_user, conflicts_with = "user")]
    user_of: Option<Uid>,
    /// The longest from the start of the unit to its listener
    #[arg(long, requires = "restarted", value_name = "TIME", default_value = "90s", value_parser = options::parse_duration)]
    listen_within: Duration,
    /// Exit code by which the service says that a healthy instance of it already runs; repeatable
    #[arg(long, requires = "restarted", value_name = "CODE")]
    already_running_code: Vec<u8>,
}

impl UnitOptions {
    /// What is to be restarted by its name, as it was given.
    pub(super) fn named(&self) -> Option<Named<'_>> {
        let manager = (self.user || self.user_of.is_some()).then(|| self.manager());
        self.restarted.as_deref().map(|name| Named { name, manager })
    }

    /// The unit, when it is one that is to be restarted.
    pub(super) fn name(&self) -> Option<UnitName> {
        self.restarted.as_deref().map(UnitName::new)
    }

    fn manager(&self) -> Manager {
        match self.user_of {
            Some(uid) => Manager::User(uid),
            None if self.user => Manager::User(own_uid()),
            None => Manager::System,
        }
    }

    /// The option that names the same manager, and the words of `systemctl` and its kin for it.
    fn manager_words(&self) -> (String, &'static str) {
        match self.user_of {
            Some(uid) => (format!(" --user-of {uid}"), ""),
            None if self.user => (" --user".to_owned(), " --user"),
            None => (String::new(), ""),
        }
    }
}

impl Restart {
    /// Restarts a unit by its service manager.
    pub(super) async fn run_unit(&self, name: &UnitName, verbose: bool) -> anyhow::Result<Exit> {
        let manager = self.unit.manager();
        let mut door = UnitDoor::open(manager, name).await?;
        let (unit, details) = door.read().await?;
        if let Some(socket) = details.sockets.first() {
            return Err(UsageError(format!(
                "{name} is started by {socket}: systemd holds its port all the time, so there is nothing to \
                 guard; restart it with systemctl{} restart {name}",
                self.unit.manager_words().1
            ))
            .into());
        }
        let (endpoints, learned) = self.unit_endpoints(&unit)?;
        let mut session = self.tier.open(&endpoints).await?;
        let context = Context {
            service: unit.name.to_string(),
            command: "restart",
            dry_run: self.ending.dry_run,
            drain: self.ending.drain(),
        };
        let mut output = Output::new(context, self.output.json, verbose, Box::new(std::io::stderr()));
        let began = now();
        output.unit(began, &unit, &details);
        if learned {
            let list: Vec<String> = endpoints.iter().map(BindSpec::to_string).collect();
            output.step(began, "ports_learned", None, &format!("it listens on {}", list.join(" and ")));
        }
        for note in unit_notes(&unit, &details) {
            output.step(began, "unit_note", None, &note);
        }
        let mut look = options::plan_to_rehearse(endpoints.clone(), &self.rules, &self.ending, &session)?;
        let mut free = options::plan_to_free(endpoints, &self.rules, &self.ending, &session)?;
        // One request: whoever the unit's end brings forth is a newcomer to both.
        free.asker = look.asker.clone();
        for plan in [&mut look, &mut free] {
            self.ending.respect(Some(drain(&unit)), plan);
            // Named once more with --unit, it is still the one to restart.
            plan.rules.units.retain(|rule| rule.name != unit.name && rule.name != *name);
            units::ask(plan).await;
            plan.rules.units.push(UnitRule {
                manager: Some(manager),
                state: UnitState::Known(unit.clone()),
                restarted: true,
                ..UnitRule::named(unit.name.as_str())
            });
        }
        if let Some(why) = self.why_not_from_here(&unit, &details, &look.asker) {
            output.refused_here(began, session.tier(), &why);
            return Ok(Exit::Refused);
        }
        if self.ending.dry_run {
            let gate = session.run(look, &mut output).await?;
            let exit = match Ahead::of(&gate, &unit) {
                Ahead::Clear => Exit::Done,
                _ => rehearsed(&gate),
            };
            output.step(
                now(),
                "unit_note",
                None,
                &format!("restart would stop {name} by systemd first, and start it after"),
            );
            output.looked(&gate, &session, exit);
            return Ok(exit);
        }
        let plan = Plan {
            stop: Some(longest_stop(&unit)),
            follow: self.unit.listen_within,
            total: self.ending.timeout(),
            already_running: self.unit.already_running_code.iter().copied().map(i32::from).collect(),
        };
        let plans = Plans { restart: plan, look, free };
        let restarted = session.restart_unit(&mut door, &unit, plans, &mut output).await?;
        let end = restarted.restart.end().context("the restart ended without an end")?;
        let exit = Exit::of_restart(end);
        output.unit_restarted(&restarted, end, &session, exit, began);
        Ok(exit)
    }

    /// What is guarded, and whether that was learned from what the unit listens on now.
    fn unit_endpoints(&self, unit: &Unit) -> anyhow::Result<(Vec<BindSpec>, bool)> {
        let live = || listeners_of(unit).context("cannot find out what the unit listens on; give --port");
        if self.port.is_empty() {
            let specs = live()?;
            if specs.is_empty() {
                let elsewhere = unit
                    .main_pid
                    .map(|main| {
                        format!(" (if it has a network namespace of its own, add --netns pid:{main})")
                    })
                    .unwrap_or_default();
                let name = &unit.name;
                return Err(UsageError(format!(
                    "nobody in {name} listens now, so its ports are not known: give them with --port{elsewhere}"
                ))
                .into());
            }
            return Ok((specs, true));
        }
        if self.bind.is_silent() {
            // How the ports were bound is better known from the live listeners than from a default.
            let given = |spec: &BindSpec| self.port.iter().any(|port| port.get() == spec.port.get());
            let specs: Vec<BindSpec> =
                listeners_of(unit).unwrap_or_default().into_iter().filter(given).collect();
            if self.port.iter().all(|port| specs.iter().any(|spec| spec.port.get() == port.get())) {
                return Ok((specs, true));
            }
        }
        Ok((self.bind.endpoints(&self.port)?, false))
    }

    /// Stopping the unit would stop portguard half way.
    fn why_not_from_here(&self, unit: &Unit, details: &UnitDetails, asker: &Asker) -> Option<String> {
        let path = asker.cgroup.as_deref()?;
        let (name, (whose, own)) = (&unit.name, self.unit.manager_words());
        let along = details.stopped_along.iter().find(|other| {
            let (cgroup, other) = (format!("{path}/"), format!("/{other}/"));
            cgroup.contains(&other)
        });
        let inside = match along {
            _ if unit.has_cgroup(path) => format!("this portguard runs inside {name} ({path})"),
            Some(other) => {
                format!("this portguard runs inside {other} ({path}), which is stopped along with {name}")
            }
            None => return None,
        };
        let ports: String = self.port.iter().map(|port| format!(" --port {port}")).collect();
        Some(format!(
            "{inside}: stopping it would end portguard half way, and nobody would start it again. Run it outside: \
             systemd-run{own} --collect portguard restart{whose} {name}{ports}"
        ))
    }
}
