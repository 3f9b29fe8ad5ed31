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
        /// Array of 64-bit words: the ports of `WATCHED` in any namespace, one bit each. That of
        /// port 0, which no socket keeps, says that the end of connections is reported for any.
        PORTS = "PORTS";
        /// Hash of socket addresses to [`Closing`](crate::Closing).
        CLOSING = "CLOSING";
        /// Hash of the cookies of listeners whose end is told by their destruction alone, to
        /// [`WatchKey`](crate::WatchKey).
        KNOWN = "KNOWN";
        /// Hash of mini-sockets' addresses to [`WatchKey`](crate::WatchKey).
        LEAVING = "LEAVING";
        /// Hash of thread group ids (the guard's PID namespace) to 1.
        OWNERS = "OWNERS";
        /// Hash of inode numbers of the sockets whose owners are looked for, to 1.
        WANTED = "WANTED";
        /// LRU hash of [`LoserKey`](crate::LoserKey) to [`Loser`](crate::Loser).
        LOSERS = "LOSERS";
        /// Per-CPU array of one element: a counter for each [`LostReason`](crate::LostReason).
        LOST = "LOST";
    }
}

/// Names of the programs: for each of the first three hooks one on the raw
/// tracepoint and one on the classic one.
pub mod program {
    names! {
        /// On the raw tracepoint `inet_sock_set_state`.
        RAW_SET_STATE = "pg_raw_state";
        /// On the raw tracepoint `tcp_destroy_sock`.
        RAW_DESTROY_SOCK = "pg_raw_destroy";
        /// On the raw tracepoint `sched_process_exit`.
        RAW_PROCESS_EXIT = "pg_raw_exit";
        /// On the raw tracepoint `sys_exit`.
        RAW_SYS_EXIT = "pg_raw_sys_exit";
        /// On the exit of `inet_put_port`.
        PUT_PORT = "pg_put_port";
        /// On the entry of `inet_twsk_kill`.
        TWSK_ENTER = "pg_twsk_enter";
        /// On the exit of `inet_twsk_kill`.
        TWSK_EXIT = "pg_twsk_exit";
        /// On the exit of `inet_csk_get_port`.
        GET_PORT = "pg_get_port";
        /// On `sock:inet_sock_set_state`.
        SET_STATE = "pg_set_state";
        /// On `tcp:tcp_destroy_sock`.
        DESTROY_SOCK = "pg_destroy_sock";
        /// On `sched:sched_process_exit`.
        PROCESS_EXIT = "pg_process_exit";
        /// On the iterator `task_file`.
        TASK_FILE = "pg_task_file";
    }
}

/// Names of the read-only globals.
pub mod symbol {
    names! {
        /// The [`Settings`](crate::Settings).
        SETTINGS = "SETTINGS";
        /// The [`OwnerOffsets`](crate::OwnerOffsets).
        OWNER_OFFSETS = "OWNER_OFFSETS";
    }
}
