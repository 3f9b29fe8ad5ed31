//! The BPF programs of portguard: one file per hook.
//!
//! Each hook has two entry points, which count what could not be reported, and
//! a `try_` function that both share: cheapest filter first, then fill, then
//! emit. One entry point is for the raw tracepoint (for sockets the typed kind,
//! `tp_btf`), which is detached in no time; the other for the classic one, which needs no BTF. The guard loads one
//! of the two kinds. The programs keep to what a 5.10 kernel has: tracepoint
//! arguments and fields, helpers, and kernel members at offsets that the guard
//! resolved from the running kernel.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![no_std]
#![no_main]

mod current;
mod emit;
mod function;
mod inet_csk_get_port;
mod inet_put_port;
mod inet_sock_set_state;
mod inet_twsk_kill;
mod lost_bind;
mod maps;
mod sched_process_exit;
mod settings;
mod skip;
mod sock;
mod socket;
mod sys_exit;
mod task_file;
mod tcp_destroy_sock;

/// The kernel gives tracing helpers only to programs with a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Programs have no way to panic: the verifier refuses an endless loop, so a
/// panic that the optimizer could not remove shows when the object is loaded.
#[cfg(any(target_arch = "bpf", clippy))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
