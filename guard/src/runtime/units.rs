//! Service managers, for event loops that wait for nobody.
//!
//! A thread of its own speaks D-Bus: no message of a manager, and no manager that
//! keeps one waiting, delays a gate. It keeps one right that no other thread of
//! the sidecar has: to connect to a user's bus as that user (`CAP_SETUID`).

use std::time::Duration;

use guard_core::model::{Manager, Unit, UnitName};
use guard_core::restart::{JobKind, JobResult, UnitDetails};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::act::systemd::{Heard, Job, SystemdError, UnitDoor};
use crate::kernel::privileges;

/// A manager that has not answered after this long will not. As long as D-Bus
/// libraries wait.
const ANSWER: Duration = Duration::from_secs(25);

/// Units that wait for the thread. Each is a run of the engine, so there are few.
const WAITING: usize = 1024;

/// The thread that speaks to service managers.
#[derive(Clone, Debug)]
pub struct Units(mpsc::Sender<Errand>);

/// What a manager is asked about, and where the answers go.
struct Errand {
    manager: Manager,
    name: UnitName,
    wishes: mpsc::UnboundedReceiver<Wish>,
    tell: Box<dyn Fn(Told) -> bool + Send>,
}

/// What a run wants of its unit's manager.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Job(JobKind),
    ResetFailed,
    Read,
}

/// What a unit's manager says.
#[derive(Debug)]
pub(super) enum Told {
    /// The unit as it is before anything was done.
    Opened(Result<Box<Seen>, SystemdError>),
    /// The job that was asked for is over.
    JobOver(JobResult),
    /// The job that was asked for was refused.
    JobRefused(SystemdError),
    /// The unit's failure is forgotten, or could not be, in words.
    FailureReset(Result<(), String>),
    /// The unit now.
    Seen {
        /// It answers a wish to read it; else it comes with the end of a job.
        asked: bool,
        /// `None` when it could not be read.
        seen: Option<Box<Seen>>,
    },
    /// Something about it changed. Not said again before it was read.
    Changed,
    /// The manager cannot be asked any more, in words.
    Lost(String),
}

/// A unit and what else its manager says about it.
pub(super) type Seen = (Unit, UnitDetails);

/// One run's line to its unit's manager. Dropping it hangs up.
#[derive(Debug)]
pub(super) struct Line(mpsc::UnboundedSender<Wish>);

impl Units {
    /// Starts the thread. What its caller gives up afterwards, it has kept until
    /// then: it gives up all but its own at once.
    ///
    /// # Errors
    ///
    /// When there is no thread or no event loop for it.
    pub fn start() -> std::io::Result<Self> {
        let (errands, inbox) = mpsc::channel(WAITING);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("units".to_owned()).spawn(move || {
            if let Err(error) = privileges::keep_for_units() {
                warn!(%error, "keeping capabilities that are not needed to speak to service managers");
            }
            runtime.block_on(attend(inbox));
            runtime.shutdown_background();
        })?;
        Ok(Self(errands))
    }

    /// Finds a unit and listens to what its manager says. `tell` is called on the
    /// thread; nobody is told any more once it says `false`.
    pub(super) fn open(
        &self,
        manager: Manager,
        name: UnitName,
        tell: impl Fn(Told) -> bool + Send + 'static,
    ) -> Line {
        let (line, wishes) = mpsc::unbounded_channel();
        let errand = Errand { manager, name, wishes, tell: Box::new(tell) };
        if let Err(unsent) = self.0.try_send(errand) {
            let errand = match unsent {
                mpsc::error::TrySendError::Full(errand) | mpsc::error::TrySendError::Closed(errand) => errand,
            };
            (errand.tell)(Told::Opened(Err(SystemdError::Lost { manager })));
        }
        Line(line)
    }
}

impl Line {
    /// Asks for a job: [`Told::JobOver`] or [`Told::JobRefused`] answers.
    pub(super) fn ask_for(&self, job: JobKind) {
        self.wish(Wish::Job(job));
    }

    /// [`Told::FailureReset`] answers.
    pub(super) fn reset_failed(&self) {
        self.wish(Wish::ResetFailed);
    }

    /// [`Told::Seen`] answers.
    pub(super) fn read(&self) {
        self.wish(Wish::Read);
    }

    fn wish(&self, wish: Wish) {
        // Whoever attends to it has said that it does so no more.
        let _hung_up = self.0.send(wish);
    }
}

async fn attend(mut inbox: mpsc::Receiver<Errand>) {
    while let Some(errand) = inbox.recv().await {
        // On a task of its own: a manager that does not answer keeps no other waiting.
        drop(tokio::spawn(run(errand)));
    }
}

/// One run's errand, to its end.
async fn run(errand: Errand) {
    let Errand { manager, name, mut wishes, tell } = errand;
    let opened = tokio::select! {
        opened = open(manager, &name) => opened,
        // The run has ended; its wishes come after the opening.
        None = wishes.recv() => return,
    };
    let mut door = match opened {
        Ok((door, seen)) => {
            tell(Told::Opened(Ok(seen)));
            door
        }
        Err(error) => {
            tell(Told::Opened(Err(error)));
            return;
        }
    };
    let mut job: Option<Job> = None;
    let mut changed = false;
    loop {
        let heard = tokio::select! {
            biased;
            wish = wishes.recv() => {
                let answer = match wish {
                    None => return,
                    Some(Wish::Job(kind)) => match within(manager, door.ask_for(kind)).await {
                        Ok(asked) => {
                            job = Some(asked);
                            continue;
                        }
                        // It may still be done.
                        Err(error @ (SystemdError::Late { .. } | SystemdError::Lost { .. })) => {
                            Told::Lost(format!("{error}; whether it will do what it was asked for is not known"))
                        }
                        Err(error) => Told::JobRefused(error),
                    },
                    Some(Wish::ResetFailed) => {
                        let reset = within(manager, door.reset_failed()).await;
                        Told::FailureReset(reset.map_err(|error| error.to_string()))
                    }
                    Some(Wish::Read) => {
                        changed = false;
                        Told::Seen { asked: true, seen: read(manager, &door).await }
                    }
                };
                if tell(answer) { continue } else { return }
            }
            heard = door.heard() => heard,
        };
        let goes_on = match heard {
            Heard::JobOver { job: over, result } if job.as_ref() == Some(&over) => {
                job = None;
                let seen = read(manager, &door).await;
                tell(Told::Seen { asked: false, seen }) && tell(Told::JobOver(result))
            }
            Heard::JobOver { .. } => true,
            Heard::Changed => std::mem::replace(&mut changed, true) || tell(Told::Changed),
            Heard::Lost => {
                tell(Told::Lost(SystemdError::Lost { manager }.to_string()));
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

async fn open(manager: Manager, name: &UnitName) -> Result<(UnitDoor, Box<Seen>), SystemdError> {
    let door = within(manager, UnitDoor::open(manager, name)).await?;
    let seen = within(manager, door.read()).await?;
    Ok((door, Box::new(seen)))
}

/// What could not be read now is read after the next change.
async fn read(manager: Manager, door: &UnitDoor) -> Option<Box<Seen>> {
    match within(manager, door.read()).await {
        Ok(seen) => Some(Box::new(seen)),
        Err(error) => {
            debug!(%error, "cannot read the unit");
            None
        }
    }
}

async fn within<T>(
    manager: Manager,
    answer: impl Future<Output = Result<T, SystemdError>>,
) -> Result<T, SystemdError> {
    let late = |_| SystemdError::Late { manager, after: ANSWER };
    tokio::time::timeout(ANSWER, answer).await.map_err(late)?
}
