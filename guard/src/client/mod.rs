//! The other side of the sidecar's socket: asking it, and watching it.
//!
//! What the sidecar answers is read with the types that it writes where they
//! can be read back, and events with a reader of their own (`events`) that
//! takes what it needs and survives what it does not know: the sidecar may be
//! newer than its client.

mod connection;
mod events;
pub mod look;
mod sse;
pub mod through;
pub mod watch;
mod words;

pub use connection::ClientError;
