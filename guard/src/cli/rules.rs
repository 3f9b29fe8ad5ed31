//! Options that say how the service's processes are recognised.

use clap::Args;
use guard_core::model::Uid;
use guard_core::policy::{CgroupGlob, Pattern, Rules, UnitRule, UnitState};

use super::preset::Preset;
use crate::runtime::asker;
use crate::runtime::spelling::{Regex, as_kernel_comm, parse_user};

/// How the service's processes are recognised.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Who may be ended (kinds combine with AND, repeats of one kind with OR)")]
pub(super) struct RuleOptions {
    /// Regular expression, searched in the owner's argv, exe and comm
    #[arg(long = "match", value_name = "REGEX")]
    patterns: Vec<Regex>,
    /// Path of the owner's executable
    #[arg(long, value_name = "PATH", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    exe: Vec<String>,
    /// The owner's command name; only together with another rule, as any process may choose its own
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    comm: Vec<String>,
    /// The owner's user, by name or number
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    uid: Vec<Uid>,
    /// The systemd unit whose cgroup the owner is in; without a suffix it is a service. The running
    /// instance of a unit is never ended. With --match or --exe, an owner that runs outside of any
    /// service is recognised too: it was started behind the service manager's back
    #[arg(long, value_name = "UNIT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    unit: Vec<String>,
    /// The path of the owner's cgroup, as in /proc/PID/cgroup: * is any text without a slash, ** any
    /// text, ? one character
    #[arg(long, value_name = "GLOB", value_parser = parse_glob)]
    cgroup: Vec<CgroupGlob>,
    /// Recognise everybody. Portguard itself, its ancestors, kernel threads and newcomers stay safe
    #[arg(long, conflicts_with_all = ["patterns", "exe", "comm", "uid", "unit", "cgroup"])]
    any_owner: bool,
    /// Adopted from the service's options.
    #[arg(skip)]
    preset: Option<Preset>,
}

impl RuleOptions {
    /// These rules, with those of the service's preset.
    #[must_use]
    pub(super) fn with_preset(mut self, preset: Option<Preset>) -> Self {
        self.preset = preset;
        self
    }

    /// The rules, with what this machine says about the units that they name.
    pub(super) fn rules(&self) -> Rules {
        let known = self.preset.filter(|_| !self.any_owner).map(Preset::expansion);
        // A rule of the user's own takes the place of the preset's of that kind.
        let patterns = match known {
            Some(known) if self.patterns.is_empty() => {
                known.patterns.iter().filter_map(|text| text.parse().ok()).collect()
            }
            _ => self.patterns.clone(),
        };
        let comm = match known {
            Some(known) if self.comm.is_empty() => known.comm.iter().map(|&comm| comm.to_owned()).collect(),
            _ => self.comm.clone(),
        };
        Rules {
            patterns: patterns.into_iter().map(|regex: Regex| Box::new(regex) as Box<dyn Pattern>).collect(),
            exe: self.exe.clone(),
            comm: comm.iter().map(|comm| as_kernel_comm(comm)).collect(),
            uid: self.uid.clone(),
            cgroups: self.cgroup.clone(),
            units: self.unit.iter().map(|name| unit_rule(name)).collect(),
            any_owner: self.any_owner,
            spare_services: false,
        }
    }
}

/// What this machine says about a unit.
fn unit_rule(name: &str) -> UnitRule {
    let state = if asker::service_manager_runs() {
        UnitState::Unknown("its service manager was not asked".to_owned())
    } else {
        UnitState::NoManager
    };
    UnitRule { state, ..UnitRule::named(name) }
}

fn parse_glob(text: &str) -> Result<CgroupGlob, &'static str> {
    CgroupGlob::new(text)
}
