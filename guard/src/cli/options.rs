//! Options that several subcommands share, and how they become a plan.

use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use guard_core::gate::{Budgets, Goal, Plan, Reach};
use guard_core::model::{BindSpec, Port};
use guard_core::policy::{Asker, Pattern, Rules};

use super::exit::UsageError;
use super::preset::PresetOptions;
pub(super) use super::rules::RuleOptions;
pub(super) use crate::runtime::spelling::parse_duration;
use crate::runtime::spelling::{Address, Place, parse_buffer, parse_interval};
use crate::runtime::{Session, Tier, TierChoice, Tuning, asker, netns};

/// Which network namespace is guarded.
#[derive(Clone, Debug, Args)]
pub(super) struct NetnsOptions {
    /// Work in this network namespace: a path such as /run/netns/NAME, or pid:N
    ///
    /// Owners are found whatever namespace they live in. A command that `restart` starts begins
    /// inside, as with `ip netns exec`: only there does its bind find the port that was proven free.
    /// No other kind of namespace is entered.
    #[arg(long = "netns", value_name = "PATH|pid:N")]
    place: Option<Place>,
}

impl NetnsOptions {
    /// Moves this thread, and all that it starts from now on, inside.
    pub(super) fn enter(&self) -> Result<(), netns::NetnsError> {
        match &self.place {
            Some(Place(path)) => netns::enter(path).map(drop),
            None => Ok(()),
        }
    }
}

/// The endpoints of the service.
#[derive(Clone, Debug, Args)]
pub(super) struct ServiceOptions {
    /// TCP port of the service; repeat it for several
    #[arg(long, short, value_parser = parse_port, required_unless_present = "preset")]
    port: Vec<NonZeroU16>,
    #[command(flatten)]
    pub(super) preset: PresetOptions,
    #[command(flatten)]
    pub(super) bind: BindOptions,
}

/// How the service binds its ports.
#[derive(Clone, Debug, Args)]
pub(super) struct BindOptions {
    /// Address the service binds; repeat it for several. Without it: [::] dual-stack, as Node.js
    /// listens by default, which meets every other address
    #[arg(long, short, value_name = "IP")]
    address: Vec<Address>,
    /// The service sets IPV6_V6ONLY
    #[arg(long)]
    v6only: bool,
    /// The service binds without SO_REUSEADDR, so its old connections and TIME_WAIT block it too
    #[arg(long)]
    strict_bind: bool,
    #[command(flatten)]
    pub(super) netns: NetnsOptions,
}

pub(super) fn parse_port(text: &str) -> Result<NonZeroU16, &'static str> {
    text.parse().map_err(|_| "a port is a number from 1 to 65535")
}

impl ServiceOptions {
    /// The bind specs, in the order given.
    pub(super) fn endpoints(&self) -> anyhow::Result<Vec<BindSpec>> {
        self.bind.endpoints(&self.preset.ports(&self.port)?)
    }

    /// What its preset stands for, for who asks with `-v`.
    pub(super) fn preset_in_flags(&self) -> Option<String> {
        self.preset.in_flags(&self.port)
    }

    /// The service's name in reports.
    pub(super) fn name(&self) -> String {
        self.preset.ports(&self.port).map_or_else(|_| "service".to_owned(), |ports| name_of_ports(&ports))
    }
}

/// The name in reports of a service that is known by its ports.
pub(super) fn name_of_ports(ports: &[NonZeroU16]) -> String {
    let ports: Vec<String> = ports.iter().map(NonZeroU16::to_string).collect();
    format!("port-{}", ports.join("+"))
}

impl BindOptions {
    /// Nothing was said about the addresses.
    pub(super) const fn is_silent(&self) -> bool {
        self.address.is_empty() && !self.v6only && !self.strict_bind
    }

    /// The bind specs of these ports, in the order given.
    pub(super) fn endpoints(&self, ports: &[NonZeroU16]) -> anyhow::Result<Vec<BindSpec>> {
        let addresses =
            if self.address.is_empty() { vec![Address::everywhere()] } else { self.address.clone() };
        let mut endpoints: Vec<BindSpec> = Vec::new();
        for port in ports {
            let port = Port::new(port.get()).context("port 0 cannot be guarded")?;
            for address in &addresses {
                let spec = BindSpec {
                    address: address.ip,
                    scope: address.scope.index().map_err(|error| UsageError(error.to_string()))?,
                    port,
                    v6only: self.v6only && address.ip.is_ipv6(),
                    reuse_address: !self.strict_bind,
                    reuse_port: false,
                };
                if !endpoints.contains(&spec) {
                    endpoints.push(spec);
                }
            }
        }
        Ok(endpoints)
    }
}

/// Where facts come from.
#[derive(Clone, Debug, Args)]
pub(super) struct TierOptions {
    /// Where facts come from; the verdicts are the same, only the latency differs
    #[arg(long, value_enum, default_value = "auto")]
    tier: TierName,
    /// Refuse to run in a lower tier than this: wait until it is ready, or fail
    #[arg(long, value_enum, value_name = "TIER")]
    require_tier: Option<RequiredTier>,
    /// Time between two bind probes in the poll tier
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = parse_interval)]
    poll_interval: Duration,
    /// Kernel memory for events that are not read yet, such as 64K or 4M, in the ebpf and netlink
    /// tiers. For very busy ports: what does not fit is lost, shown, and leads to a fresh look
    #[arg(long, value_name = "SIZE", value_parser = parse_buffer)]
    event_buffer: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TierName {
    /// The best that this machine and user have; starts on what is ready first
    Auto,
    /// BPF programs, or fail
    Ebpf,
    /// The kernel's announcements of destroyed sockets, or fail; needs no privilege
    Netlink,
    /// Probe at an interval; works everywhere
    Poll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RequiredTier {
    Ebpf,
    Netlink,
}

impl TierOptions {
    /// Opens the sources of facts.
    pub(super) async fn open(&self, endpoints: &[BindSpec]) -> anyhow::Result<Session> {
        let choice = match self.tier {
            TierName::Auto => TierChoice::Auto,
            TierName::Ebpf => TierChoice::Only(Tier::Ebpf),
            TierName::Netlink => TierChoice::Only(Tier::Netlink),
            TierName::Poll => TierChoice::Only(Tier::Poll),
        };
        let tuning =
            Tuning { poll_interval: self.poll_interval, event_buffer: self.event_buffer, standing: false };
        let mut session = Session::open(choice, endpoints, tuning)?;
        match self.require_tier {
            Some(RequiredTier::Ebpf) => session.require(Tier::Ebpf).await?,
            Some(RequiredTier::Netlink) => session.require(Tier::Netlink).await?,
            None => {}
        }
        Ok(session)
    }
}

/// How a run's steps and its end are told.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OutputOptions {
    /// One JSON object per line instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// Time budgets of a run that may end somebody.
#[derive(Clone, Debug, Args)]
pub(super) struct EndingOptions {
    /// From SIGTERM to SIGKILL, for each process [default: the TimeoutStopSec= of the --unit or of the
    /// UNIT to restart, else 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain: Option<Duration>,
    /// Give up after this long [default: the drain budget and 20s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Open as soon as the port is bindable, although an ended process has not finished exiting
    #[arg(long)]
    pub(super) port_only: bool,
    /// As the last resort, destroy the sockets that no signal helps against (SOCK_DESTROY, needs
    /// CAP_NET_ADMIN): TIME_WAIT, connections, client source ports, and listeners that no process
    /// has. Only if nothing else stays in the way; never a listener that somebody has
    #[arg(long)]
    evict: bool,
    /// End the descendants of the stale holders too, and the process group that one of them leads. Each is judged as they are, and if one may not
    /// be ended, nobody is
    #[arg(long, conflicts_with = "cgroup_kill")]
    tree: bool,
    /// End everybody in the cgroup of the stale holders' service too, with SIGKILL to all at once where
    /// SIGTERM is not enough, in a frozen cgroup v2. Everybody in it must be recognised by the rules; a login session's cgroup is
    /// refused. (--cgroup is the rule, this is the deed)
    #[arg(long)]
    cgroup_kill: bool,
    /// Say who would get which signal and why; signal nobody
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl EndingOptions {
    /// What will be needed in the end is asked for before anything is done.
    fn check(&self) -> Result<(), asker::EvictError> {
        if self.evict { asker::may_evict() } else { Ok(()) }
    }

    /// Who is ended besides the owners.
    pub(super) const fn reach(&self) -> Reach {
        if self.tree {
            Reach::Tree
        } else if self.cgroup_kill {
            Reach::Cgroup
        } else {
            Reach::Owners
        }
    }

    /// The limit of the whole run, where one was given.
    pub(super) const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The drain budget where no unit says otherwise.
    pub(super) fn drain(&self) -> Duration {
        self.drain.unwrap_or(DRAIN)
    }

    fn total(&self, drain: Duration) -> Duration {
        self.timeout.unwrap_or(drain.saturating_add(Duration::from_secs(20)))
    }

    /// Gives the processes of a unit the time that the unit itself grants them, where the user
    /// said nothing else.
    pub(super) fn respect(&self, stop: Option<Duration>, plan: &mut Plan) {
        if let (None, Some(stop)) = (self.drain, stop) {
            plan.budgets.drain = stop;
            if plan.goal == Goal::Free {
                plan.budgets.total = Some(self.total(stop));
            }
        }
    }
}

/// The drain budget where nobody knows a better one.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// From SIGKILL until a process counts as unkillable.
const CONFIRM: Duration = Duration::from_secs(5);

/// A plan that only looks, and says what [`plan_to_free`] would do.
pub(super) fn plan_to_rehearse(
    endpoints: Vec<BindSpec>,
    rules: &RuleOptions,
    ending: &EndingOptions,
    session: &Session,
) -> anyhow::Result<Plan> {
    ending.check()?;
    let mut plan = plan_to_look(endpoints, rules, ending.drain(), session)?;
    plan.evict = ending.evict;
    plan.reach = ending.reach();
    Ok(plan)
}

/// A plan that only looks, with the rules that `free` would use.
pub(super) fn plan_to_look(
    endpoints: Vec<BindSpec>,
    rules: &RuleOptions,
    drain: Duration,
    session: &Session,
) -> anyhow::Result<Plan> {
    let budgets = Budgets { total: Some(Duration::from_secs(30)), drain, confirm: CONFIRM };
    plan(endpoints, Goal::Look, rules.rules(), budgets, session)
}

/// A plan that waits and signals nobody.
pub(super) fn plan_to_wait(endpoints: Vec<BindSpec>, timeout: Duration, session: &Session) -> Plan {
    let budgets = Budgets { total: Some(timeout), drain: Duration::ZERO, confirm: CONFIRM };
    plan_of(asker::bystander(), endpoints, Goal::Wait, Rules::default(), budgets, session)
}

/// A plan that ends the stale holders.
pub(super) fn plan_to_free(
    endpoints: Vec<BindSpec>,
    rules: &RuleOptions,
    ending: &EndingOptions,
    session: &Session,
) -> anyhow::Result<Plan> {
    ending.check()?;
    let drain = ending.drain();
    let budgets = Budgets { total: Some(ending.total(drain)), drain, confirm: CONFIRM };
    let mut plan = plan(endpoints, Goal::Free, rules.rules(), budgets, session)?;
    plan.port_only = ending.port_only;
    plan.evict = ending.evict;
    plan.reach = ending.reach();
    Ok(plan)
}

/// A plan with rules made in the code.
pub(super) fn plan(
    endpoints: Vec<BindSpec>,
    goal: Goal,
    rules: Rules,
    budgets: Budgets,
    session: &Session,
) -> anyhow::Result<Plan> {
    Ok(plan_of(asker::asker()?, endpoints, goal, rules, budgets, session))
}

fn plan_of(
    asker: Asker,
    endpoints: Vec<BindSpec>,
    goal: Goal,
    rules: Rules,
    budgets: Budgets,
    session: &Session,
) -> Plan {
    let recheck = session.recheck();
    let (port_only, evict, reach) = (false, false, Reach::Owners);
    Plan { endpoints, goal, rules, asker, budgets, recheck, port_only, evict, reach }
}

/// A rule that searches for `text` literally.
pub(super) fn literal(text: &str) -> Box<dyn Pattern> {
    #[derive(Debug)]
    struct Literal(String);
    impl Pattern for Literal {
        fn is_match(&self, text: &str) -> bool {
            text.contains(&self.0)
        }
        fn source(&self) -> &str {
            &self.0
        }
    }
    Box::new(Literal(text.to_owned()))
}
