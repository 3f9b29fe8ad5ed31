//! Test guests: real Debian kernels under QEMU's software emulation.
//!
//! The order of the files is the way of a kernel: [`series`] names it, [`apt`] fetches its
//! packages, [`kernel`] takes them apart, [`build`] makes static programs, [`image`] packs them
//! into an initramfs ([`cpio`]), [`guest`] boots it and listens, [`exceptions`] says what may fail.

pub(crate) mod apt;
pub(crate) mod build;
mod cpio;
pub(crate) mod exceptions;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod series;
