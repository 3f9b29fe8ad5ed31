//! Steps and ends for a person and for a program.

use std::fmt;

use super::{End, JobKind, JobResult, MainExit, Obstacle, Step};

impl fmt::Display for MainExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Start => "start",
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => {
                write!(
                    f,
                    "it is started by {socket}: systemd holds its port all the time, so there is nothing to guard"
                )
            }
            Self::Inside { unit, cgroup, along } => {
                let along = if *along { ", which is stopped along with it" } else { "" };
                write!(
                    f,
                    "this portguard runs inside {unit} ({cgroup}){along}: stopping it would end portguard half way"
                )
            }
        }
    }
}

fn main_process(exit: Option<MainExit>) -> String {
    exit.map_or_else(|| "its main process ended".to_owned(), |exit| format!("its main process {exit}"))
}

impl Step {
    /// The word of the `run_step` event.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Stopping => "unit_stopping",
            Self::Stopped(_) => "unit_stopped",
            Self::FailureReset(_) => "unit_not_reset",
            Self::Starting => "unit_starting",
            Self::StartedElsewhere => "unit_started_elsewhere",
            Self::Started(_) => "unit_started",
            Self::Crashed(_) => "unit_crashed",
            Self::Listening(_) => "listening",
            Self::ListeningUnseen => "listening",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("systemd is asked to stop it"),
            Self::Stopped(JobResult::Done) => f.write_str("it has stopped"),
            Self::Stopped(result) => write!(f, "the stop job ended as {}", result.name()),
            Self::FailureReset(Ok(())) => f.write_str("systemd forgets that it failed"),
            Self::FailureReset(Err(why)) => write!(f, "its failure could not be reset: {why}"),
            Self::Starting => f.write_str("systemd is asked to start it"),
            Self::StartedElsewhere => f.write_str("somebody else has started it meanwhile"),
            Self::Started(JobResult::Done) => f.write_str("it has started"),
            Self::Started(result) => write!(f, "the start job ended as {}", result.name()),
            Self::Crashed(exit) => {
                write!(f, "{} before it listened; systemd starts it again", main_process(*exit))
            }
            Self::Listening(process) => write!(f, "pid {process} listens"),
            Self::ListeningUnseen => f.write_str("somebody listens; the owner is not visible"),
        }
    }
}

impl End {
    /// The word of the `run_finished` event.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Restarted(_) => "restarted",
            Self::NotBegun(_) => "refused",
            Self::JobRefused { .. } => "job_refused",
            Self::NotStopped(_) => "not_stopped",
            Self::GateShut(_) => "gate_shut",
            Self::NotStarted(_) => "not_started",
            Self::Died(_) => "died",
            Self::Silent => "silent",
            Self::Rival { .. } => "rival",
            Self::Lost(_) => "manager_lost",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restarted(_) => f.write_str("it listens"),
            Self::NotBegun(_) => f.write_str("nothing was done"),
            Self::JobRefused { job, why, .. } => write!(f, "systemd refuses to {job} it: {why}"),
            Self::NotStopped(None) => f.write_str("it has not stopped in time, and was not started"),
            Self::NotStopped(Some(result)) => {
                write!(f, "the stop job ended as {}, and nothing was started", result.name())
            }
            Self::GateShut(_) => f.write_str("it was stopped and not started: the port is not free"),
            Self::NotStarted(None) => f.write_str("it has not started in time"),
            Self::NotStarted(Some(result)) => write!(f, "the start job ended as {}", result.name()),
            Self::Died(exit) => write!(f, "{} before it listened", main_process(*exit)),
            Self::Silent => f.write_str("it runs, and nobody listens on the port"),
            Self::Rival { process, told: None } => {
                write!(f, "pid {process} has the port, which is not of this unit")
            }
            Self::Rival { process, told: Some(code) } => write!(
                f,
                "it exited with code {code}, which says that a healthy one already runs, and pid {process} has the port"
            ),
            Self::Lost(why) => f.write_str(why),
        }
    }
}
