//! A process title over argv and comm, as `process.title = …` does in Node.

use anyhow::{Context, Result, ensure};
use std::ffi::CString;

/// Field numbers in `/proc/PID/stat` (proc(5)) of where argv lies.
const ARG_START: usize = 48;
const ARG_END: usize = 49;

/// Overwrites argv with `title`, blanks the rest, and sets comm to its first 15 bytes.
pub(crate) fn wear(title: &str) -> Result<()> {
    nix::sys::prctl::set_name(&CString::new(title)?).context("set comm")?;
    let stat = std::fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    let after_comm = stat.rsplit_once(')').context("/proc/self/stat has no comm")?.1;
    let fields: Vec<&str> = after_comm.split_whitespace().collect();
    // The first field after comm is number 3.
    let field = |number: usize| -> Result<usize> {
        Ok(fields.get(number - 3).context("/proc/self/stat is too short")?.parse()?)
    };
    let (start, end) = (field(ARG_START)?, field(ARG_END)?);
    ensure!(start != 0 && end > start + title.len(), "argv is too short for the title");
    // SAFETY: the kernel put argv there, writable, on the initial stack; Rust's
    // std and clap only kept copies of it, and no other thread runs yet.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, end - start);
        std::ptr::copy_nonoverlapping(title.as_ptr(), start as *mut u8, title.len());
    }
    Ok(())
}
