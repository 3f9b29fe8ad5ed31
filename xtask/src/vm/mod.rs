//! Test guests: real Debian kernels under QEMU's software emulation.
//!
//! The order of the files is the way of a kernel: [`series`] names it, [`apt`] fetches its
//! packages, [`kernel`] takes them apart, [`build`] makes programs, [`image`] packs them
//! into an initramfs ([`cpio`]), [`plan`] says what runs in it, [`guest`] boots it and listens, [`answers`] are
//! held against a [`table`], [`exceptions`] says what may fail, [`scenarios`] and [`total`] sum up.

pub(crate) mod answers;
pub(crate) mod apt;
pub(crate) mod build;
mod cpio;
pub(crate) mod exceptions;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod plan;
mod scenarios;
pub(crate) mod series;
pub(crate) mod table;
pub(crate) mod total;
