//! `portguard watch`: the services of a running sidecar, live.

mod draw;
mod follow;
mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::io::Write;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::follow::{Documents, News};
use super::ClientError;
use super::events::Event;
use super::words::sentence;

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table that fills the terminal.
    Table {
        /// Verdicts have colours.
        colour: bool,
    },
    /// One line of text for each event.
    Lines,
    /// The events as they are sent, one JSON object a line.
    Json,
}

/// The view cannot be begun, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// There is no sidecar, or none for this user.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The terminal, standard output or the signals failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

fn system(operation: &'static str) -> impl Fn(std::io::Error) -> WatchError {
    move |source| WatchError::System { operation, source }
}

/// Shows the sidecar behind `socket` until somebody asks for an end, or nobody reads any more. When
/// the sidecar goes away it waits for the next one. Needs a running tokio reactor with timers.
///
/// # Errors
///
/// See [`WatchError`]. A sidecar that goes away later is none.
pub async fn watch(socket: &Path, form: Form) -> Result<(), WatchError> {
    let documents = if matches!(form, Form::Table { .. }) { Documents::Wanted } else { Documents::Unwanted };
    let mut signals = Signals::new().map_err(system("handle signals"))?;
    let (mut news, looks) = follow::follow(socket.to_owned(), documents);
    // Before the terminal is touched: an error is for a person to read.
    let first = match news.recv().await {
        Some(News::Lost(error)) => return Err(error.into()),
        Some(first) => first,
        None => return Ok(()),
    };
    match form {
        Form::Table { colour } => screen::table(socket, first, news, looks, &mut signals, colour).await,
        Form::Lines | Form::Json => lines(socket, form, news, &mut signals).await,
    }
}

/// Whatever asks for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves with the next of them. Cancel safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Writes each event to standard output. That the sidecar went or came back is said on standard
/// error.
async fn lines(
    socket: &Path,
    form: Form,
    mut news: mpsc::Receiver<News>,
    signals: &mut Signals,
) -> Result<(), WatchError> {
    // SAFETY: descriptor 1 stays open for the life of the process: nothing here closes it, and every
    // call names the same one.
    let output = unsafe { AsyncFd::register_with_interest(std::io::stdout(), Interest::ERROR) };
    // Not every kind of output can be waited for: a file has always a reader.
    let output = output.ok();
    let mut lost = false;
    loop {
        let told = tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            () = reader_gone(output.as_ref()) => return Ok(()),
            told = news.recv() => told,
        };
        match told {
            Some(News::Told(told)) => {
                let line = if form == Form::Json { Some(told.json) } else { in_words(&told.json) };
                match line.map_or(Ok(()), |line| write(&line)) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(system("write to standard output")(error)),
                }
            }
            Some(News::Lost(error)) => {
                if !std::mem::replace(&mut lost, true) {
                    complain(&format!("{error}; waiting for the next one"));
                }
            }
            Some(News::Known(_)) => {
                if std::mem::take(&mut lost) {
                    complain(&format!("a sidecar answers at {} again", socket.display()));
                }
            }
            None => return Ok(()),
        }
    }
}

/// Resolves when nobody can read any more what is written to standard output.
async fn reader_gone(output: Option<&AsyncFd<std::io::Stdout>>) {
    match output {
        Some(output) => drop(output.ready(Interest::ERROR).await),
        None => std::future::pending().await,
    }
}

fn write(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

/// One line on standard error; nobody may be listening there either.
fn complain(what: &str) {
    drop(writeln!(std::io::stderr(), "portguard: {what}"));
}

/// `2026-11-21T13:55:01.123456Z gateway: SIGTERM to pid 4711`
fn in_words(json: &str) -> Option<String> {
    let event = Event::parse(json)?;
    let about = event.service.as_ref().map(|name| format!(" {name}:")).unwrap_or_default();
    Some(format!("{}{about} {}", event.time, sentence(&event)))
}
