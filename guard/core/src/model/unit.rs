use std::fmt;
use std::time::Duration;

use super::{ProcessId, Uid};

/// Which service manager a unit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manager {
    /// The system's: `systemctl`.
    System,
    /// This user's own: `systemctl --user`.
    User(Uid),
}

/// A unit's name with its suffix, such as `openclaw-gateway.service`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitName(String);

impl UnitName {
    /// The name as `systemctl` understands it: without a suffix it is a service.
    pub fn new(name: &str) -> Self {
        if is_unit(name) { Self(name.to_owned()) } else { Self(format!("{name}.service")) }
    }

    /// The name with its suffix.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its manager starts and stops its processes; those of a scope were started by somebody else.
    pub fn is_service(&self) -> bool {
        self.0.ends_with(".service")
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One unit on this machine: two managers may each have one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitId {
    /// Whose it is.
    pub manager: Manager,
    /// Its name.
    pub name: UnitName,
}

impl UnitId {
    /// The unit that a cgroup path belongs to, read off the path alone:
    /// `/system.slice/x.service/part` is the system's `x.service`,
    /// `/user.slice/user-7.slice/user@7.service/app.slice/y.service` is user 7's `y.service`.
    ///
    /// Only slices may come before a unit, as systemd itself reads it: the
    /// `x.service` of a container is not the `x.service` of this machine.
    pub fn of_cgroup(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).map(unescaped);
        let mut below = parts.by_ref().skip_while(|part| part.ends_with(".slice"));
        let first = below.next().filter(|part| is_unit(part))?;
        let Some(uid) = user_manager(first) else {
            return Some(Self { manager: Manager::System, name: UnitName(first.to_owned()) });
        };
        let own = || Self { manager: Manager::System, name: UnitName(first.to_owned()) };
        // The user manager's own processes (init.scope) belong to the unit that it is itself.
        match below.find(|part| !part.ends_with(".slice")) {
            Some(name) if is_unit(name) && name != "init.scope" => {
                Some(Self { manager: Manager::User(uid), name: UnitName(name.to_owned()) })
            }
            _ => Some(own()),
        }
    }

    /// As [`UnitName::is_service`].
    pub fn is_service(&self) -> bool {
        self.name.is_service()
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.manager {
            Manager::System => self.name.fmt(f),
            Manager::User(uid) => write!(f, "{} of user {uid}", self.name),
        }
    }
}

/// A name that cannot be a file in a cgroup directory is escaped by systemd with
/// an underscore in front.
fn unescaped(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

/// The unit types that have processes.
fn is_unit(part: &str) -> bool {
    [".service", ".scope", ".socket", ".mount", ".swap"]
        .iter()
        .any(|suffix| part.strip_suffix(suffix).is_some_and(|name| !name.is_empty()))
}

fn user_manager(unit: &str) -> Option<Uid> {
    unit.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok().map(Uid)
}

/// Who gets which signal when the unit is stopped (`KillMode=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KillMode {
    /// Everybody in its cgroup.
    ControlGroup,
    /// SIGTERM to the main process, SIGKILL to everybody.
    Mixed,
    /// The main process only: whoever else there is stays.
    Process,
    /// Nobody.
    None,
}

/// A unit's state as its manager tells it (`ActiveState`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActiveState {
    /// It runs.
    Active,
    /// It runs, and reads its configuration again.
    Reloading,
    /// It does not run.
    Inactive,
    /// It does not run, and ended badly.
    Failed,
    /// It is being started, or waits for its next automatic restart.
    Activating,
    /// It is being stopped.
    Deactivating,
    /// A word that this version does not know.
    Other(String),
}

impl ActiveState {
    /// The manager's word for it.
    pub fn name(&self) -> &str {
        match self {
            Self::Active => "active",
            Self::Reloading => "reloading",
            Self::Inactive => "inactive",
            Self::Failed => "failed",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::Other(word) => word,
        }
    }

    /// From the manager's word.
    pub fn from_name(word: &str) -> Self {
        match word {
            "active" => Self::Active,
            "reloading" => Self::Reloading,
            "inactive" => Self::Inactive,
            "failed" => Self::Failed,
            "activating" => Self::Activating,
            "deactivating" => Self::Deactivating,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Its processes are what the manager takes for the running service. In doubt they are.
    pub const fn has_instance(&self) -> bool {
        !matches!(self, Self::Inactive | Self::Failed)
    }
}

/// What a service manager says about one of its units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `Id`: its own name, not an alias.
    pub name: UnitName,
    /// Whose it is.
    pub manager: Manager,
    /// `MainPID`, with the start time that it had when it was asked for.
    pub main_pid: Option<ProcessId>,
    /// `ControlGroup`: the path below the root of the hierarchy; `None` while it has none.
    pub control_group: Option<String>,
    /// `KillMode`
    pub kill_mode: KillMode,
    /// `TimeoutStopUSec`; `None` is infinity.
    pub timeout_stop: Option<Duration>,
    /// `Restart`: `no`, `on-failure`, `always` …
    pub restart: String,
    /// `ActiveState`
    pub active_state: ActiveState,
    /// `NRestarts`: automatic restarts since the last start by hand.
    pub n_restarts: u32,
    /// `Result`: `success`, `exit-code`, `start-limit-hit` …
    pub result: String,
}

impl Unit {
    /// Which unit this is.
    pub fn id(&self) -> UnitId {
        UnitId { manager: self.manager, name: self.name.clone() }
    }

    /// Whether the path is the unit's cgroup or lies below it.
    pub fn has_cgroup(&self, path: &str) -> bool {
        let below = |own: &str| {
            path.strip_prefix(own.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // A unit without a cgroup is told "/" or nothing: that is not everybody's.
        self.control_group.as_deref().is_some_and(|own| own.len() > 1 && below(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Option<String> {
        UnitId::of_cgroup(path).map(|unit| unit.to_string())
    }

    #[test]
    fn a_cgroup_path_names_its_unit() {
        for (path, unit) in [
            ("/system.slice/x.service", Some("x.service")),
            ("/system.slice/x.service/part/of.service", Some("x.service")),
            ("/system.slice/system-gateway.slice/gateway@1.service", Some("gateway@1.service")),
            ("/user.slice/user-7.slice/session-3.scope", Some("session-3.scope")),
            ("/user.slice/user-7.slice/user@7.service/app.slice/y.service/w", Some("y.service of user 7")),
            ("/user.slice/user-7.slice/user@7.service/app.slice/z.scope", Some("z.scope of user 7")),
            ("/user.slice/user-7.slice/user@7.service/init.scope", Some("user@7.service")),
            ("/user.slice/user-7.slice/user@7.service", Some("user@7.service")),
            ("/user.slice/user-7.slice/user@7.service/app.slice", Some("user@7.service")),
            ("/system.slice/docker-0123.scope/system.slice/x.service", Some("docker-0123.scope")),
            ("/system.slice/_cgroup.service", Some("cgroup.service")),
            ("/init.scope", Some("init.scope")),
            // Another manager's, which only has the same names.
            ("/docker/0123/system.slice/x.service", None),
            ("/../../system.slice/x.service", None),
            ("/x/y.service", None),
            ("/system.slice", None),
            ("/system.slice/.service", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(of(path).as_deref(), unit, "{path}");
        }
    }

    #[test]
    fn a_name_without_suffix_is_a_service() {
        assert_eq!(UnitName::new("openclaw").as_str(), "openclaw.service");
        assert_eq!(UnitName::new("a.b").as_str(), "a.b.service");
        assert_eq!(UnitName::new("x.scope").as_str(), "x.scope");
    }

    #[test]
    fn a_unit_has_its_cgroup_and_all_below_but_no_sibling() {
        let unit = |control_group: Option<&str>| Unit {
            name: UnitName::new("x"),
            manager: Manager::System,
            main_pid: None,
            control_group: control_group.map(str::to_owned),
            kill_mode: KillMode::ControlGroup,
            timeout_stop: None,
            restart: "always".to_owned(),
            active_state: ActiveState::Active,
            n_restarts: 0,
            result: "success".to_owned(),
        };
        let x = unit(Some("/system.slice/x.service"));
        assert!(x.has_cgroup("/system.slice/x.service"));
        assert!(x.has_cgroup("/system.slice/x.service/part"));
        assert!(!x.has_cgroup("/system.slice/x.service.d"));
        assert!(!unit(Some("/")).has_cgroup("/system.slice/x.service"));
        assert!(!unit(None).has_cgroup("/"));
    }
}
