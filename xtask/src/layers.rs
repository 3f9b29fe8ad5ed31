//! The rooms of the house, as data: who may use whom, and who may touch what.
//!
//! The tables here are the rule; `layer_check` only reads them. A new
//! module gets a row, an exception gets a reason.

/// One part of the source tree with a place in the layering.
#[derive(Debug)]
pub(crate) struct Room {
    /// The name, which is the first segment after `crate::` inside package guard.
    pub(crate) name: &'static str,
    /// Path prefixes of its files, from the root of the checkout. The longest prefix wins.
    pub(crate) files: &'static [&'static str],
    /// The rooms it may use besides itself.
    pub(crate) uses: &'static [&'static str],
}

/// Every room. A file below one of [`HOUSES`] that is in no room is an error.
pub(crate) const ROOMS: &[Room] = &[
    Room { name: "guard_common", files: &["guard-common/src/"], uses: &[] },
    Room { name: "guard_ebpf", files: &["guard-ebpf/src/"], uses: &["guard_common"] },
    Room { name: "guard_core", files: &["guard/core/src/"], uses: &[] },
    Room {
        name: "kernel",
        files: &["guard/src/kernel/", "guard/src/kernel.rs"],
        uses: &["guard_core", "guard_common"],
    },
    Room {
        name: "observe",
        files: &["guard/src/observe/", "guard/src/observe.rs"],
        uses: &["guard_core", "kernel"],
    },
    Room { name: "act", files: &["guard/src/act/", "guard/src/act.rs"], uses: &["guard_core", "kernel"] },
    Room {
        name: "runtime",
        files: &["guard/src/runtime/", "guard/src/runtime.rs"],
        uses: &["guard_core", "kernel", "observe", "act"],
    },
    Room {
        name: "report",
        files: &["guard/src/report/", "guard/src/report.rs"],
        uses: &["guard_core", "runtime"],
    },
    Room {
        name: "sidecar",
        files: &["guard/src/sidecar/", "guard/src/sidecar.rs"],
        uses: &["guard_core", "runtime", "report"],
    },
    Room {
        name: "client",
        files: &["guard/src/client/", "guard/src/client.rs"],
        uses: &["guard_core", "runtime", "report", "sidecar"],
    },
    Room {
        name: "cli",
        files: &["guard/src/cli/", "guard/src/cli.rs"],
        uses: &["guard_core", "runtime", "report", "sidecar", "client"],
    },
    Room {
        name: "main",
        files: &["guard/src/main.rs", "guard/src/lib.rs"],
        uses: &["guard_core", "runtime", "report", "sidecar", "client", "cli"],
    },
];

/// Folders in which every Rust file belongs to a room.
pub(crate) const HOUSES: &[&str] = &["guard-common/src/", "guard-ebpf/src/", "guard/core/src/", "guard/src/"];

/// Something that only some files may name.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// Path prefixes of names: `aya` covers `aya::maps::Map`.
    pub(crate) names: &'static [&'static str],
    /// Where the rule holds.
    pub(crate) within: &'static [&'static str],
    /// Where the names are allowed all the same.
    pub(crate) allowed: &'static [&'static str],
    /// What a person is told.
    pub(crate) why: &'static str,
}

/// Crates and parts of std with one door.
pub(crate) const RESERVED: &[Reserved] = &[
    Reserved {
        names: &["aya", "aya_log", "aya_obj", "guard_common"],
        within: &["guard/"],
        allowed: &["guard/src/kernel/bpf/"],
        why: "only kernel/bpf speaks to BPF",
    },
    Reserved {
        names: &[
            "nix",
            "rustix",
            "libc",
            "procfs",
            "netlink_sys",
            "netlink_packet_core",
            "netlink_packet_sock_diag",
        ],
        within: &["guard/src/"],
        allowed: &["guard/src/kernel/", "guard/src/runtime.rs", "guard/src/runtime/"],
        why: "the system is called in kernel/; the rooms above use its doors",
    },
    Reserved {
        names: &["zbus"],
        within: &["guard/"],
        allowed: &["guard/src/act/systemd/"],
        why: "only act/systemd speaks D-Bus",
    },
    Reserved {
        names: &["tokio"],
        within: &["guard/src/kernel/", "guard/src/report/", "guard/core/"],
        allowed: &[],
        why: "doors and reports do not know the event loop",
    },
    Reserved {
        names: &["clap"],
        within: &["guard/"],
        allowed: &["guard/src/cli/", "guard/src/cli.rs", "guard/src/main.rs"],
        why: "arguments are parsed in cli",
    },
    Reserved {
        names: &["hyper", "hyper_util", "http_body_util"],
        within: &["guard/"],
        allowed: &["guard/src/sidecar/", "guard/src/client/"],
        why: "HTTP is spoken by the sidecar and its client",
    },
    Reserved {
        names: &["toml", "strsim"],
        within: &["guard/"],
        allowed: &["guard/src/sidecar/"],
        why: "the configuration file is the sidecar's",
    },
    Reserved {
        names: &["opentelemetry", "opentelemetry_http", "opentelemetry_otlp", "opentelemetry_sdk"],
        within: &["guard/"],
        allowed: &["guard/src/sidecar/otlp/"],
        why: "only sidecar/otlp exports traces, and only with the feature otlp",
    },
    Reserved {
        names: &["ratatui"],
        within: &["guard/"],
        allowed: &["guard/src/client/watch/"],
        why: "only the live view draws on a terminal",
    },
    Reserved {
        names: &["schemars"],
        within: &["guard/"],
        allowed: &["guard/src/report/", "guard/src/sidecar/"],
        why: "what is sent is described where it is made",
    },
    Reserved {
        names: &["anyhow"],
        within: &["guard/", "guard-common/"],
        allowed: &["guard/src/main.rs", "guard/src/cli/"],
        why: "a library error has a type; anyhow is for main and its subcommands",
    },
    Reserved {
        names: &[
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::net::ToSocketAddrs",
            "std::os",
            "std::fs",
            "std::io",
            "std::env",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::collections::HashMap",
            "std::collections::HashSet",
            "std::hash::RandomState",
            "tracing::info",
            "tracing::warn",
            "tracing::error",
        ],
        within: &["guard/core/src/"],
        allowed: &[],
        why: "the core is pure: no I/O, clock, threads, environment or unordered maps, logs at debug",
    },
];

/// A piece of code that only some files may contain.
#[derive(Debug)]
pub(crate) struct Forbidden {
    /// Identifiers, or a call written `.name(`; each is matched as a whole word.
    pub(crate) words: &'static [&'static str],
    /// Where the rule holds.
    pub(crate) within: &'static [&'static str],
    /// Where the words are allowed all the same.
    pub(crate) allowed: &'static [&'static str],
    /// What a person is told.
    pub(crate) why: &'static str,
}

/// Clocks have one reader, sleeps have none.
pub(crate) const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        words: &["Instant::now", "SystemTime::now", "clock_gettime", ".elapsed("],
        within: &["guard/src/", "guard/core/src/"],
        allowed: &["guard/src/runtime.rs", "guard/src/runtime/"],
        why: "the runtime is the only reader of the clock",
    },
    Forbidden {
        words: &["sleep", "nanosleep", "clock_nanosleep", "usleep"],
        within: &["guard/src/", "guard/core/src/"],
        allowed: &[],
        why: "every wait ends on an event or a deadline, never after a fixed sleep",
    },
    Forbidden {
        words: &["HashMap", "HashSet"],
        within: &["guard/core/src/"],
        allowed: &[],
        why: "the core's outputs may not depend on a hasher: use BTreeMap",
    },
    Forbidden {
        words: &["sleep"],
        within: &["tests/tests/"],
        allowed: &[],
        why: "tests wait on conditions with a deadline (the package's own helper), they do not sleep",
    },
];

/// A breach that is wanted.
#[derive(Debug)]
pub(crate) struct Exception {
    /// The file or folder.
    pub(crate) file: &'static str,
    /// The room, name or word that it may use.
    pub(crate) what: &'static str,
    /// Why. An empty reason does not compile.
    pub(crate) why: &'static str,
}

/// Every breach that is wanted. One that no longer happens is an error, so that the list cannot rot.
pub(crate) const EXCEPTIONS: &[Exception] = &[
    Exception {
        file: "guard/src/cli/doctor.rs",
        what: "kernel",
        why: "doctor reports what the kernel's doors can do on this machine, without a run",
    },
    Exception {
        file: "guard/src/cli/demo/gateway.rs",
        what: "nix",
        why: "the stand-in gateway is the program that is guarded: it makes the sockets that the guard observes",
    },
];

const _: () = {
    let mut index = 0;
    while index < EXCEPTIONS.len() {
        assert!(!EXCEPTIONS[index].why.is_empty(), "an exception needs a reason");
        index += 1;
    }
};

/// Names that say nothing about what is inside.
pub(crate) const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "manager", "common", "misc"];

/// Split a file at this many lines.
pub(crate) const LINES: usize = 600;
