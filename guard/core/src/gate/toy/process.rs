//! The toy's processes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::kernel::Key;
use crate::model::{BindSpec, Process, ProcessId, ProcessState, Seen, Tgid, Uid};

/// What a process truly is, whatever it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Role {
    /// An instance of the service.
    Service,
    /// Somebody else's program.
    Stranger,
    /// The guard itself, or its parent.
    Kin,
    /// It recognisably is the service and lives in the guard's own service cgroup.
    Roommate,
    /// The kernel's own thread.
    KernelThread,
}

/// Which cgroup a process lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Place {
    /// A login session's scope, in which nobody starts anybody again.
    Session,
    /// The service's own unit.
    Unit,
    /// A part of the service's own unit.
    UnitPart,
    /// Another service.
    OtherService,
    /// A container.
    Container,
}

impl Place {
    pub(in crate::gate) const ALL: [Self; 5] =
        [Self::Session, Self::Unit, Self::UnitPart, Self::OtherService, Self::Container];

    pub(in crate::gate) const fn path(self) -> &'static str {
        match self {
            Self::Session => "/user.slice/user-0.slice/session-1.scope",
            Self::Unit => "/user.slice/user-0.slice/user@0.service/app.slice/gateway.service",
            Self::UnitPart => "/user.slice/user-0.slice/user@0.service/app.slice/gateway.service/worker",
            Self::OtherService => "/system.slice/other.service",
            Self::Container => "/system.slice/docker-0123.scope/gateway.service",
        }
    }

    /// Who is moved here from there is in other hands than before.
    pub(in crate::gate) const fn changes_hands(self, from: Self) -> bool {
        match self {
            Self::Session => false,
            Self::Unit | Self::UnitPart => !from.is_unit(),
            Self::OtherService => !matches!(from, Self::OtherService),
            Self::Container => !matches!(from, Self::Container),
        }
    }

    pub(in crate::gate) const fn is_unit(self) -> bool {
        matches!(self, Self::Unit | Self::UnitPart)
    }
}

/// What SIGTERM does to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum OnTerm {
    /// It exits after this long.
    Exit(Duration),
    /// Nothing.
    Ignore,
    /// It closes its sockets and then lives on: for so long, or for ever.
    CloseAndLinger(Duration, Option<Duration>),
    /// It closes its sockets, starts a detached successor and exits.
    HandOver(Duration),
    /// It becomes another program, with its sockets or without them.
    Become(Duration, bool),
}

/// How a process comes into the world.
#[derive(Clone, Debug)]
pub(in crate::gate) struct Birth {
    pub(in crate::gate) role: Role,
    pub(in crate::gate) uid: Uid,
    /// `None`: a fresh number.
    pub(in crate::gate) tgid: Option<Tgid>,
    pub(in crate::gate) threads: u32,
    pub(in crate::gate) on_term: OnTerm,
    /// From the start of its exit to the closing of its sockets.
    pub(in crate::gate) teardown: Duration,
    /// From a listener's leaving LISTEN to the release of its bind bucket.
    pub(in crate::gate) release: Duration,
    /// In D state: no signal has any effect, ever.
    pub(in crate::gate) stuck: bool,
    /// It is started again so long after its end.
    pub(in crate::gate) respawn: Option<Duration>,
    /// What it tries to listen on from its start, every 3 ms, until it succeeds.
    pub(in crate::gate) listens: Vec<BindSpec>,
    /// It gives the port up so long after it got it.
    pub(in crate::gate) holds: Option<Duration>,
    pub(in crate::gate) place: Place,
    pub(in crate::gate) parent: Option<ProcessId>,
    /// Stopped: it acts on SIGTERM only once it goes on.
    pub(in crate::gate) stopped: bool,
}

impl Birth {
    pub(in crate::gate) fn of(role: Role) -> Self {
        Self {
            role,
            uid: Uid(0),
            tgid: None,
            threads: 1,
            on_term: OnTerm::Exit(Duration::ZERO),
            teardown: Duration::from_micros(500),
            release: Duration::from_micros(1),
            stuck: false,
            respawn: None,
            listens: Vec::new(),
            holds: None,
            place: Place::Session,
            parent: None,
            stopped: false,
        }
    }
}

/// How far a process has gone on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Life {
    Alive,
    /// The address space is gone, the descriptor table is not.
    Exiting,
    /// The descriptor table is gone too; the sockets are being closed.
    Emptied,
}

/// One thread group.
#[derive(Clone, Debug)]
pub(in crate::gate) struct Proc {
    pub(in crate::gate) id: ProcessId,
    pub(in crate::gate) birth: Birth,
    pub(in crate::gate) role: Role,
    pub(in crate::gate) descriptors: BTreeSet<Key>,
    pub(in crate::gate) life: Life,
    pub(in crate::gate) termed: bool,
    pub(in crate::gate) stopped: bool,
}

impl Proc {
    /// What `/proc` shows.
    pub(in crate::gate) fn evidence(&self, readable: bool) -> Process {
        let (comm, exe, argv) = match self.role {
            Role::Service | Role::Roommate => ("MainThread", "/usr/bin/node", "openclaw-gateway"),
            // Kin are recognisable on purpose: only protection saves them.
            Role::Kin => ("sh", "/bin/sh", "sh openclaw.sh"),
            Role::Stranger => ("nginx", "/usr/sbin/nginx", "nginx: master"),
            Role::KernelThread => ("kworker/0:1", "", ""),
        };
        let has_image = self.role != Role::KernelThread && self.life == Life::Alive;
        let (exe, argv) = match (has_image, readable) {
            (false, _) => (Seen::Absent, Seen::Absent),
            (true, false) => (Seen::Hidden, Seen::Hidden),
            (true, true) => (Seen::Known(exe.to_owned()), Seen::Known(vec![argv.to_owned()])),
        };
        let state = match self.life {
            Life::Alive if self.birth.stuck => ProcessState::Uninterruptible,
            Life::Alive if self.stopped => ProcessState::Stopped,
            Life::Alive => ProcessState::Sleeping,
            Life::Exiting if self.birth.threads > 1 => ProcessState::Zombie,
            Life::Exiting | Life::Emptied => ProcessState::Running,
        };
        Process {
            id: self.id,
            parent: Some(self.birth.parent.map_or(Tgid(1), |parent| parent.tgid)),
            uid: self.birth.uid,
            comm: comm.to_owned(),
            exe,
            exe_deleted: false,
            argv,
            cgroup: Some(match self.role {
                Role::Roommate => format!("{}/worker", super::OUR_SERVICE),
                _ => self.birth.place.path().to_owned(),
            }),
            kernel_thread: self.role == Role::KernelThread,
            state,
            group: None,
            wait_channel: None,
        }
    }

    /// A scan of `/proc/PID/fd` lists its descriptors: not those of a dead
    /// leader whose other threads still live.
    pub(in crate::gate) fn shows_descriptors(&self) -> bool {
        match self.life {
            Life::Alive => true,
            Life::Exiting => self.birth.threads == 1,
            Life::Emptied => false,
        }
    }
}
