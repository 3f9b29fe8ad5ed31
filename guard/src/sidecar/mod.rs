//! The sidecar: many services in one process, asked over a Unix socket.
//!
//! Each network namespace has a thread with the event loop of its services
//! ([`crate::runtime::engine`]). What happens there goes through bounded
//! channels, never waited for, to the hub on the main thread, which keeps the
//! history and answers clients.

mod access;
mod answers;
pub mod config;
pub(crate) mod documents;
mod engines;
mod hub;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod routes;
mod serve;
mod server;
mod stream;
mod teller;

pub use serve::{SidecarError, serve};
