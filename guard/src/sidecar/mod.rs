//! The sidecar: many services in one process, asked over a Unix socket.

pub mod config;
