//! The bind probe: the only proof that a port is free.
//!
//! A probe binds exactly as the service would (same address, same flags) and
//! closes. It never listens and never connects, so no client can notice it,
//! and while it is open another process can bind *and* listen where both sides
//! have `SO_REUSEADDR`. A service without that flag cannot bind while a probe
//! of it is open: for such a service look at the socket table first and probe
//! only when nobody is seen there.
//!
//! `SO_REUSEPORT` sharing also demands the same effective user: a probe as root
//! for a service of another user says `InUse` where the service would succeed.
//! That errs on the safe side: it never says `Bindable` wrongly for a listener.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use guard_core::model::{BindOutcome, BindSpec};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

/// Binds one socket as `spec` says. The port stays bound until the descriptor
/// is dropped; there is one exactly when the outcome is
/// [`BindOutcome::Bindable`].
pub fn try_bind(spec: &BindSpec) -> (BindOutcome, Option<OwnedFd>) {
    match prepared(spec).and_then(|socket| bound(&socket, spec).map(|()| socket)) {
        Ok(socket) => (BindOutcome::Bindable, Some(socket)),
        Err(failure) => (failure.outcome(), None),
    }
}

/// Probes all of `specs` once: see [`Prober::bind_all`].
pub fn bind_all(specs: &[BindSpec]) -> Vec<BindOutcome> {
    Prober::default().bind_all(specs)
}

/// Whoever waits for a port.
///
/// A socket whose bind failed is as good as new (`an_unbound_socket_may_fail_and_try_again`), so it is kept for
/// the next probe: when the kernel gives the port back, making another one
/// would take longer than everything else that the gate does.
#[derive(Debug, Default)]
pub struct Prober {
    /// Sockets with the flags of their spec, not bound.
    ready: Vec<(BindSpec, OwnedFd)>,
    /// Those of the last probe that are still bound.
    held: Vec<(BindSpec, OwnedFd)>,
}

/// More than one run has endpoints. What is beyond drives out what was kept for longest.
const MOST_READY: usize = 16;

impl Prober {
    /// Probes all of `specs`, and keeps each bound until all were tried, so that a
    /// row of [`BindOutcome::Bindable`] says "all of them at one moment".
    ///
    /// Two specs that exclude each other (`0.0.0.0` and a dual-stack `[::]` on one
    /// port without `SO_REUSEADDR`, or the same spec twice) are not held together:
    /// the earlier one is closed before the later one is tried, because the
    /// question is who *else* is in the way.
    ///
    /// The kernel takes longer to close a bound socket than to bind it. A service with `SO_REUSEADDR` can bind and
    /// listen meanwhile, so that a probe for such services alone stays open until [`Prober::let_go`].
    pub fn bind_all(&mut self, specs: &[BindSpec]) -> Vec<BindOutcome> {
        self.let_go();
        let mut outcomes = Vec::with_capacity(specs.len());
        for spec in specs {
            self.held.retain(|(other, _)| !exclude_each_other(spec, other));
            let socket = match self.ready.iter().position(|(ready, _)| ready == spec) {
                Some(index) => Ok(self.ready.remove(index).1),
                None => prepared(spec),
            };
            let outcome = match socket {
                Ok(socket) => match bound(&socket, spec) {
                    Ok(()) => {
                        self.held.push((*spec, socket));
                        BindOutcome::Bindable
                    }
                    Err(failure) => {
                        self.keep(*spec, socket);
                        failure.outcome()
                    }
                },
                Err(failure) => failure.outcome(),
            };
            outcomes.push(outcome);
        }
        if !specs.iter().all(|spec| spec.reuse_address) {
            self.let_go();
        }
        if outcomes.contains(&BindOutcome::InUse) {
            self.prepare(specs);
        }
        outcomes
    }

    /// Closes what the last probe has left open.
    pub fn let_go(&mut self) {
        self.held.clear();
    }

    /// Makes what the next probe needs, now that there is time.
    fn prepare(&mut self, specs: &[BindSpec]) {
        for spec in specs {
            if !self.ready.iter().any(|(ready, _)| ready == spec)
                // A refusal is the next probe's to tell.
                && let Ok(socket) = prepared(spec)
            {
                self.keep(*spec, socket);
            }
        }
    }

    fn keep(&mut self, spec: BindSpec, socket: OwnedFd) {
        if self.ready.len() >= MOST_READY {
            self.ready.remove(0);
        }
        self.ready.push((spec, socket));
    }
}

/// Whether this machine has IPv6 sockets at all (`ipv6.disable=1` and a seccomp
/// filter take them away). A single address may still be missing.
pub fn ipv6_available() -> bool {
    socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).is_ok()
}

struct Failure {
    step: &'static str,
    errno: Errno,
}

impl Failure {
    fn outcome(self) -> BindOutcome {
        match (self.step, self.errno) {
            ("bind", Errno::EADDRINUSE) => BindOutcome::InUse,
            // ENODEV: the scope of a link-local address names no interface.
            ("bind", Errno::EADDRNOTAVAIL | Errno::ENODEV) => BindOutcome::AddressMissing,
            ("socket", Errno::EAFNOSUPPORT) => BindOutcome::FamilyMissing,
            // EACCES: a port below `ip_unprivileged_port_start`. EPERM: a BPF
            // or seccomp policy.
            (_, Errno::EACCES | Errno::EPERM) => BindOutcome::NotPermitted,
            (step, errno) => BindOutcome::Failed(format!("{step}: {errno}")),
        }
    }
}

/// A socket with the flags that `spec` asks for.
fn prepared(spec: &BindSpec) -> Result<OwnedFd, Failure> {
    let on = |step| move |errno| Failure { step, errno };
    let family = match spec.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None).map_err(on("socket"))?;
    setsockopt(&fd, sockopt::ReuseAddr, &spec.reuse_address).map_err(on("SO_REUSEADDR"))?;
    setsockopt(&fd, sockopt::ReusePort, &spec.reuse_port).map_err(on("SO_REUSEPORT"))?;
    if spec.address.is_ipv6() {
        // Always said, because `net.ipv6.bindv6only` changes the default.
        setsockopt(&fd, sockopt::Ipv6V6Only, &spec.v6only).map_err(on("IPV6_V6ONLY"))?;
    }
    Ok(fd)
}

fn bound(socket: &OwnedFd, spec: &BindSpec) -> Result<(), Failure> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(spec.socket_addr()))
        .map_err(|errno| Failure { step: "bind", errno })
}

/// Whether two sockets bound by these specs, neither listening, conflict.
/// A superset is harmless (a hold is given up early), a miss is not: the
/// probe would then report itself.
fn exclude_each_other(a: &BindSpec, b: &BindSpec) -> bool {
    let may_share = (a.reuse_address && b.reuse_address) || (a.reuse_port && b.reuse_port);
    !may_share && a.overlaps(b)
}

#[cfg(test)]
mod tests;
