//! What the programs of a development build log about themselves.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ::log::{Log, Metadata, Record};
use aya::Ebpf;
use aya_log::EbpfLogger;

use super::BpfError;

/// The global by which the programs' own logging is switched.
pub(super) use aya_log::LEVEL;

/// The log of the BPF programs; only an object built with `--features log` has one.
pub struct BpfLog {
    readable: OwnedFd,
    flush: Box<dyn FnMut() + Send>,
}

impl BpfLog {
    /// Hands every waiting line on to `tracing` at debug, target `portguard::bpf`.
    pub fn flush(&mut self) {
        (self.flush)();
    }
}

impl AsFd for BpfLog {
    /// Readable when lines are waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl AsRawFd for BpfLog {
    fn as_raw_fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }
}

impl fmt::Debug for BpfLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BpfLog").field("readable", &self.readable).finish_non_exhaustive()
    }
}

/// `None` when the object has no log.
pub(super) fn take(ebpf: &mut Ebpf) -> Result<Option<BpfLog>, BpfError> {
    let mut logger = match EbpfLogger::init_with_logger(ebpf, ToTracing) {
        Ok(logger) => logger,
        Err(aya_log::Error::MapNotFound) => return Ok(None),
        Err(error) => return Err(BpfError::failed("read", "the log of the BPF programs", error)),
    };
    let readable = logger
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| BpfError::failed("read", "the log of the BPF programs", error))?;
    Ok(Some(BpfLog { readable, flush: Box::new(move || logger.flush()) }))
}

/// aya-log speaks to the `log` crate, portguard to `tracing`.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "portguard::bpf", "{}", record.args());
    }

    fn flush(&self) {}
}
