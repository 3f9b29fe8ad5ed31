//! The source ports that the kernel gives clients.

use guard_core::source_ports::SourcePorts;
use rustix::fs::CWD;

use super::{ProcError, read_at};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The source ports of the calling thread's network namespace: `/proc/sys/net`
/// shows each thread its own.
///
/// # Errors
///
/// See [`ProcError`].
pub fn source_ports() -> Result<SourcePorts, ProcError> {
    let text = |path: &'static str| {
        let bytes = read_at(CWD, path).map_err(|errno| ProcError::new(path, errno))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    SourcePorts::parse(&text(RANGE)?, &text(RESERVED)?)
        .ok_or(ProcError::Malformed { path: RANGE.to_owned(), what: "not two ports" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sandbox::netns;
    use guard_core::model::Port;

    #[test]
    fn source_ports_belong_to_the_network_namespace() {
        netns("source_ports_belong_to_the_network_namespace", || {
            let port = Port::new(20_000).unwrap();
            assert_eq!(source_ports().unwrap().advice(port), None, "outside of the range");
            std::fs::write(RANGE, "15000 25000").unwrap();
            std::fs::write(RESERVED, "8080,15001").unwrap();
            let advice = source_ports().unwrap().advice(port).unwrap();
            // What the kernel prints is what it takes, in this namespace and no other.
            let list = advice.command().split_once('=').unwrap().1.to_owned();
            assert_eq!(list, "8080,15001,20000");
            std::fs::write(RESERVED, list).unwrap();
            assert_eq!(source_ports().unwrap().advice(port), None);
            let outside = std::thread::spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                source_ports().unwrap()
            });
            assert_ne!(outside.join().unwrap(), source_ports().unwrap());
        });
    }
}
