//! The BPF programs of portguard: one file per hook.
//!
//! Each hook is an entry point, which counts what could not be reported, and
//! a `try_` function: cheapest filter first, then fill, then emit. The programs
//! keep to what a 5.10 kernel has: tracepoint fields, helpers, and kernel
//! members at offsets that the guard resolved from the running kernel.
#![no_std]
#![no_main]

mod current;
mod emit;
mod inet_sock_set_state;
mod maps;
mod sched_process_exit;
mod settings;
mod skip;
mod socket;
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
