//! The harness of portguard's end-to-end tests: real processes in private
//! network namespaces of the running kernel.
//!
//! A scenario is a function over a [`World`], made into one test per tier by
//! [`each_tier!`]. It waits on lines and conditions with a deadline, never on time.
//!
//! | variable | means |
//! |---|---|
//! | `PORTGUARD_BIN` | the `portguard` to test; else the one built beside the tests |
//! | `PORTGUARD_OTLP_BIN` | one that was built with the feature `otlp`; without it, what needs it is skipped |
//! | `PORTGUARD_TEST_BIN_DIR` | the folder of the stand-ins; else the one beside the tests |
//! | `PORTGUARD_TEST_NODE_DIR` | the folder of the scripts for Node; else the one in the sources |
//! | `PORTGUARD_TEST_EXAMPLES_DIR` | the folder of the clients in `guard/examples`; else the one in the sources |
//! | `PORTGUARD_TEST_TIERS` | tiers to test, default all |
//! | `PORTGUARD_TEST_PID1` | `1`: PID 1 is a systemd that is there for the tests alone ([`systemd::pid1`]) |
//! | `PORTGUARD_TEST_STRICT` | `1`: a test that would be skipped fails |
//! | `PORTGUARD_TEST_SKIPS` | file that gets one line `test: reason` per skipped test |

pub mod caller;
pub mod cgroup;
pub mod child;
pub mod collector;
pub mod events;
pub mod kernel;
pub mod lines;
pub mod netns;
pub mod portguard;
pub mod process;
pub mod schema;
pub mod sidecar;
pub mod sidecar_unit;
pub mod skip;
pub mod spin;
pub mod standin;
pub mod systemd;
pub mod terminal;
pub mod tier;
pub mod wait;
pub mod world;

pub use caller::Caller;
pub use cgroup::Cgroup;
pub use events::{Event, Verdict};
pub use portguard::{Finished, Portguard, Run};
pub use process::Proc;
pub use sidecar::Sidecar;
pub use standin::Standin;
pub use terminal::Terminal;
pub use tier::Tier;
pub use wait::{DEADLINE, stays, wait_until};
pub use world::World;
