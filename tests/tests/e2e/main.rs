//! portguard, end to end, on the running kernel: one file per theme, one test per
//! scenario and tier, each in a network namespace of its own.

mod addresses;
mod bench;
mod binds;
mod conflicts;
mod crash;
mod doctor;
mod ending;
mod evicting;
mod exit_codes;
mod failure_modes;
mod faults;
mod heavy;
mod leftovers;
mod losers;
mod namespaces;
mod newcomers;
mod node;
mod notes;
mod otlp;
mod owners;
mod pid_reuse;
mod randomised;
mod reach;
mod refusals;
mod restarts;
mod roles;
mod sidecar;
mod sidecar_clients;
mod sidecar_config;
mod stuck;
mod systemd;
mod through;
mod tiers;
mod users;
mod watch;
