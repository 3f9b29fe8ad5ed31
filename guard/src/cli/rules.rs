//! Options that say how the service's processes are recognised.

use clap::Args;
use guard_core::model::Uid;
use guard_core::policy::{CgroupGlob, Pattern, Rules, UnitRule, UnitState};

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
}

impl RuleOptions {
    /// The rules, with what this machine says about the units that they name.
    pub(super) fn rules(&self) -> Rules {
        Rules {
            patterns: self.patterns.iter().map(|regex| Box::new(regex.clone()) as Box<dyn Pattern>).collect(),
            exe: self.exe.clone(),
            comm: self.comm.iter().map(|comm| as_kernel_comm(comm)).collect(),
            uid: self.uid.clone(),
            cgroups: self.cgroup.clone(),
            units: self.unit.iter().map(|name| unit_rule(name)).collect(),
            any_owner: self.any_owner,
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
