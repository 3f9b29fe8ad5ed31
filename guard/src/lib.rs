//! portguard: ends EADDRINUSE restart loops.
//!
//! The kernel states facts, [`guard_core`] decides, the rooms of this crate are
//! thin adapters around it: `kernel` holds the doors to the system, `observe`
//! turns the world into facts, `act` turns decisions into deeds, `runtime` is
//! the one event loop, `cli` and `report` face the user, `sidecar` serves and
//! `client` asks it.

pub mod act;
pub mod cli;
pub mod client;
pub mod kernel;
pub mod observe;
pub mod report;
pub mod runtime;
pub mod sidecar;
