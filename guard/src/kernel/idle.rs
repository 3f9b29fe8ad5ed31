//! Keeping the processors awake for the moment that counts.
//!
//! An idle processor is put to sleep, and has to be woken before anything runs on it:
//! in a virtual machine by its host. The kernel takes a bound on that
//! latency from whoever holds `/dev/cpu_dma_latency` open
//! (`Documentation/power/pm_qos_interface.rst`); with a bound of zero its idle loop
//! polls.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

const DEVICE: &str = "/dev/cpu_dma_latency";

/// No processor of the machine goes to sleep until this is dropped.
///
/// It costs the machine the power of its idle processors, so it is for milliseconds.
#[derive(Debug)]
pub struct Awake {
    /// The bound is withdrawn when it is closed.
    _request: File,
}

impl Awake {
    /// # Errors
    ///
    /// ENOENT where a container or a sandbox shows no such device
    /// (`PrivateDevices=`), EACCES for anybody but root, EPERM where
    /// `DevicePolicy=` forbids it.
    pub fn begin() -> io::Result<Self> {
        let mut request = OpenOptions::new().write(true).open(DEVICE)?;
        request.write_all(&0i32.to_ne_bytes())?;
        Ok(Self { _request: request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::{eventually, skip};

    /// The bound in force, which a read gives in microseconds.
    fn bound() -> io::Result<i32> {
        let mut bytes = [0; 4];
        io::Read::read_exact(&mut File::open(DEVICE)?, &mut bytes)?;
        Ok(i32::from_ne_bytes(bytes))
    }

    #[test]
    fn the_bound_is_withdrawn_with_its_holder() {
        const NAME: &str = "the_bound_is_withdrawn_with_its_holder";
        let Ok(before) = bound() else {
            return skip(NAME, "this machine shows no /dev/cpu_dma_latency");
        };
        // Another test may hold one for a while; a latency profile of the machine holds one for ever.
        let free = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            bound().is_ok_and(|bound| bound > 0)
        });
        if before == 0 && !free {
            return skip(NAME, "somebody else keeps this machine's processors awake");
        }
        let awake = Awake::begin().expect("root may write it");
        assert_eq!(bound().expect("readable"), 0);
        drop(awake);
        // Another test or program may hold a bound of its own for a while.
        eventually("the bound is withdrawn", || (bound().expect("readable") > 0).then_some(()));
    }
}
