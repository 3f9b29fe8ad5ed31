//! What the host has to have before a guest can be booted.

use anyhow::Result;

use crate::process::which;
use crate::setup;

/// Commands that the guests need, and the Debian package of each.
const COMMANDS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("strip", "binutils"),
];

/// Makes sure of the emulator and of what builds an image.
///
/// # Errors
///
/// When something is missing and cannot be installed here.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<_> = COMMANDS.into_iter().filter(|(command, _)| which(command).is_none()).collect();
    setup::ensure_packages("the test guests", &missing)
}
