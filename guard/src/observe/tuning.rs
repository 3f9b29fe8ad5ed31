//! How an observer is set up, besides its tier.

use std::time::Duration;

/// The advanced settings of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Time between two bind probes in the poll tier.
    pub poll_interval: Duration,
    /// Bytes of kernel memory for events that are not read yet: the ring buffer
    /// of the ebpf tier, the receive buffer of the netlink tier. `None` leaves
    /// each its default. A busy port with a strict bind fills it fastest; what
    /// does not fit is lost, counted, and leads to a fresh look.
    pub event_buffer: Option<u32>,
    /// It watches for longer than a run: what costs the rest of the machine
    /// something is left out.
    pub standing: bool,
}

impl From<Duration> for Tuning {
    fn from(poll_interval: Duration) -> Self {
        Self { poll_interval, event_buffer: None, standing: false }
    }
}
