//! Who failed to bind: what `/proc` and the cgroup hierarchy still show of them.
//!
//! A server that loses its port dies within milliseconds, and reading about it
//! takes some of them too. So it is done at once and on a thread of its own.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use guard_core::gate::Fact;
use guard_core::model::{FailedBind, Process, ProcessId};
use tokio::sync::mpsc;
use tracing::debug;

use crate::kernel::bpf::BindFailed;
use crate::kernel::{cgroup_id, procfs};

/// Losers that wait to be looked at. The programs report each of them once a
/// second, so more than this are a crowd, of which the rest goes unidentified.
const WAITING: usize = 256;

/// The thread that looks at losers; started for the first one.
#[derive(Debug)]
pub(super) struct Losers {
    questions: Option<SyncSender<BindFailed>>,
    answers: mpsc::UnboundedReceiver<Fact>,
    outbox: mpsc::UnboundedSender<Fact>,
}

impl Losers {
    pub(super) fn new() -> Self {
        let (outbox, answers) = mpsc::unbounded_channel();
        Self { questions: None, answers, outbox }
    }

    /// Has `event` looked at; [`Losers::next`] tells of it. Never blocks.
    pub(super) fn add(&mut self, event: BindFailed) {
        let questions = match &self.questions {
            Some(questions) => questions,
            None => match start(self.outbox.clone()) {
                Ok(questions) => self.questions.insert(questions),
                Err(error) => {
                    debug!(%error, "nobody looks at who failed to bind");
                    return self.tell(event);
                }
            },
        };
        if let Err(refused) = questions.try_send(event) {
            let (std::sync::mpsc::TrySendError::Full(event)
            | std::sync::mpsc::TrySendError::Disconnected(event)) = refused;
            self.tell(event);
        }
    }

    /// Tells what the event itself says.
    fn tell(&self, event: BindFailed) {
        // This value has the other end too.
        let _open = self.outbox.send(fact(event, None, None));
    }

    /// The next one who failed. Cancel safe; waits for ever when nobody does.
    pub(super) async fn next(&mut self) -> Option<Fact> {
        self.answers.recv().await
    }
}

fn start(outbox: mpsc::UnboundedSender<Fact>) -> std::io::Result<SyncSender<BindFailed>> {
    let (questions, inbox) = sync_channel::<BindFailed>(WAITING);
    thread::Builder::new().name("losers".to_owned()).spawn(move || {
        while let Ok(event) = inbox.recv() {
            let process = identify(&event);
            let cgroup = match &process {
                Some(process) => process.cgroup.clone(),
                None => cgroup_id::path(event.cgroup),
            };
            if outbox.send(fact(event, process, cgroup)).is_err() {
                // The run is over.
                return;
            }
        }
    })?;
    Ok(questions)
}

/// The process itself, and not another one under its number.
fn identify(event: &BindFailed) -> Option<Process> {
    let (tgid, start) = (event.tgid?, event.start?);
    let process =
        procfs::process(tgid).inspect_err(|error| debug!(%error, "cannot look at a loser")).ok()??;
    (process.id == ProcessId { tgid, start }).then_some(process)
}

fn fact(event: BindFailed, process: Option<Process>, cgroup: Option<String>) -> Fact {
    let bind = FailedBind {
        address: event.address,
        port: event.port,
        by_listen: event.by_listen,
        attempts: event.attempts,
        tgid: event.tgid,
        start: event.start,
        comm: event.comm,
        uid: event.uid,
        cgroup,
        process,
    };
    Fact::BindFailed { bind: Box::new(bind), at: event.at }
}
