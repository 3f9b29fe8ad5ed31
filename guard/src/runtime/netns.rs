//! In which network namespace the guard looks.
//!
//! A namespace belongs to a thread and is inherited by the threads and
//! processes that it starts. So it is entered once, before there is a second
//! thread: then every probe, dump, subscription and BPF filter is inside.

pub use crate::kernel::netns::{NetnsError, current, enter};
