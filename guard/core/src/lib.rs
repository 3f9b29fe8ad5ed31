//! The pure core of portguard.
//!
//! The kernel states facts, this crate decides, thin adapters act. Nothing in
//! here performs I/O, reads a clock, spawns a thread, draws a random number or
//! iterates over an unordered map: the same inputs always give the same
//! outputs, so every decision of a run can be replayed from its facts.

pub mod conflict;
pub mod follow;
pub mod gate;
pub mod inquiry;
pub mod model;
pub mod policy;
pub mod prospect;
pub mod restart;
pub mod source_ports;
pub mod timeline;
