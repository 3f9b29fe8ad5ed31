use guard_common::Settings;

/// The values are the guard's; these stand for "this kernel tells nothing".
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    pidns_dev: 0,
    pidns_ino: 0,
    ctx_protocol_size: 2,
    ctx_state_local: 0,
    ctx_state_remote: 0,
    ctx_destroy_family: 0,
    ctx_destroy_local: 0,
    ctx_destroy_remote: 0,
    ctx_destroy_cookie: 0,
    ctx_group_dead: 0,
    sock_net: 0,
    sock_cookie: 0,
    sock_family: 0,
    sock_protocol: 0,
    sock_number: 0,
    sock_local_port: 0,
    sock_remote_port: 0,
    sock_local_v4: 0,
    sock_remote_v4: 0,
    sock_local_v6: 0,
    sock_remote_v6: 0,
    net_inum: 0,
    task_signal: 0,
    task_leader: 0,
    task_exit_code: 0,
    signal_live: 0,
    signal_flags: 0,
    signal_exit_code: 0,
    sock_bucket: 0,
    sock_state: 0,
    mini_port: 0,
    task_start: 0,
    task_files: 0,
    files_table: 0,
    table_files: 0,
    file_private: 0,
    socket_sk: 0,
    regs_number: 0,
    regs_first: 0,
    regs_second: 0,
    call_bind: 0,
    call_listen: 0,
    own_tgid: 0,
    observe_release: 0,
    observe_exit: 0,
    raw_group_dead: 0,
    observe_put: 0,
};

/// One setting. A macro, so that only this field is read.
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: a field of an initialized static. The read is volatile because the
        // loader replaces the value that the compiler sees.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::settings::address()).$field) }
    };
}
pub(crate) use setting;

#[inline(always)]
pub(crate) fn address() -> *const Settings {
    &raw const SETTINGS
}

/// An offset setting, or `None` where the kernel does not tell.
#[inline(always)]
pub(crate) fn known(offset: u32) -> Option<usize> {
    if offset == 0 { None } else { Some(offset as usize) }
}
