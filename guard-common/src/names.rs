/// The kernel keeps 15 bytes of a name and a NUL.
const fn fits(name: &str) -> bool {
    name.len() <= 15
}

macro_rules! names {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $constant: &str = $name;
            const _: () = assert!(super::fits($name));
        )*
    };
}

/// Names of the maps.
pub mod map {
    names! {
        /// Ring buffer of records, each begun by a [`Header`](crate::Header).
        EVENTS = "EVENTS";
        /// Hash of [`WatchKey`](crate::WatchKey) to [`watch`](crate::watch) flags.
        WATCHED = "WATCHED";
        /// Array of 64-bit words: the ports of `WATCHED` in any namespace, one bit each.
        PORTS = "PORTS";
        /// Hash of socket addresses to [`Closing`](crate::Closing).
        CLOSING = "CLOSING";
        /// Hash of thread group ids (the guard's PID namespace) to 1.
        OWNERS = "OWNERS";
        /// Per-CPU array of one element: a counter for each [`LostReason`](crate::LostReason).
        LOST = "LOST";
    }
}

/// Names of the programs.
pub mod program {
    names! {
        /// On `sock:inet_sock_set_state`.
        SET_STATE = "pg_set_state";
        /// On `tcp:tcp_destroy_sock`.
        DESTROY_SOCK = "pg_destroy_sock";
        /// On `sched:sched_process_exit`.
        PROCESS_EXIT = "pg_process_exit";
    }
}

/// Names of the read-only globals.
pub mod symbol {
    names! {
        /// The [`Settings`](crate::Settings).
        SETTINGS = "SETTINGS";
    }
}
