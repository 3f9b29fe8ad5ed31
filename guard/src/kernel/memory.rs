//! Giving memory back that is needed only once.
//!
//! Loading the programs reads the kernel's types, and tells aya what it asks of
//! them: some 10 MiB for some milliseconds. The C library keeps what was freed
//! for the process's next wishes, and a guard has no such wishes: it sleeps for weeks.

/// Has large blocks go back to the kernel when they are freed. For the whole
/// process; call it before there are threads.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        /// Blocks of this size are mapped by themselves. Setting it at all ends glibc's
        /// habit of raising it to the largest block that was freed.
        const THRESHOLD: nix::libc::c_int = 256 * 1024;
        // SAFETY: it only sets a number, and there is no other thread yet.
        let _known_parameter = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, THRESHOLD) };
    }
}

/// Gives back what this process has freed. It takes about a millisecond for 10 MiB
/// and holds the allocator's locks, so it is for the time before anything is waited for, or for a
/// thread with an arena of its own.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches no block that is in use.
    unsafe {
        let _gave_any_back = nix::libc::malloc_trim(0);
    }
}
