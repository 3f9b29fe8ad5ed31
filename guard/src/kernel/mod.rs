//! Thin doors to the kernel: one file per interface, synchronous, without
//! policy and without reading the clock.
//!
//! Everything in here answers in the words of `guard_core::model`. Each door
//! has one error type, and keeps "this kernel cannot" (`Unsupported`), "you may
//! not" (`Denied`) and "it went wrong" (`Failed`) apart.

pub mod bind;
pub mod bpf;
pub mod btf;
pub mod bus_socket;
pub mod cgroup;
pub mod cgroup_id;
pub mod elsewhere;
pub mod exit_set;
pub mod features;
pub mod idle;
pub mod listener;
pub mod memory;
pub mod names;
pub mod netns;
pub mod notify;
pub mod oom;
pub mod pidfd;
pub mod privileges;
pub mod procfs;
pub mod remedies;
pub mod scheduling;
pub mod sock_diag;
mod stop_signals;
pub mod unix_socket;

#[cfg(test)]
pub(crate) mod sandbox;
