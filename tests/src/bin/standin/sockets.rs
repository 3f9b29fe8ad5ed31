//! Every way to be on a port.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, sockopt,
};
use serde_json::{Value, json};

use crate::options::Options;
use crate::say;

/// A bound socket, listening unless `--bind-only`.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) fd: OwnedFd,
    pub(crate) address: SocketAddr,
}

impl Bound {
    /// What the ready line says about it.
    pub(crate) fn describe(&self) -> Result<Value> {
        let inode = nix::sys::stat::fstat(&self.fd).context("fstat the listener")?.st_ino;
        Ok(json!({
            "address": self.address.ip().to_string(),
            "port": self.address.port(),
            "inode": inode,
            "cookie": cookie(&self.fd)?,
        }))
    }
}

/// Sockets that only need to stay open.
#[derive(Debug)]
pub(crate) enum Held {
    Connection {
        _stream: TcpStream,
    },
    Client {
        _stream: TcpStream,
        _server: TcpListener,
    },
    /// Both sides of a connection, or what is left of it.
    Pair {
        _near: Option<TcpStream>,
        _far: TcpStream,
    },
    Registered {
        _ring: OwnedFd,
    },
    InFlight {
        _sender: OwnedFd,
        _receiver: OwnedFd,
    },
}

impl Held {
    pub(crate) fn connections(&self) -> usize {
        match self {
            Self::Connection { .. } | Self::Client { .. } | Self::Pair { .. } => 1,
            Self::InFlight { .. } | Self::Registered { .. } => 0,
        }
    }
}

/// Binds everything asked for, or reports who lost and gives `None`.
pub(crate) fn open_all(options: &Options, attempt: u32) -> Result<Option<Vec<Bound>>> {
    let mut opened = Vec::new();
    for &address in &options.listen {
        match open(options, address) {
            Ok(bound) => opened.push(bound),
            Err(Errno::EADDRINUSE) => {
                say::line(&json!({
                    "standin": "bind_failed",
                    "errno": "EADDRINUSE",
                    "address": address.to_string(),
                    "attempt": attempt,
                }));
                return Ok(None);
            }
            Err(errno) => return Err(errno).with_context(|| format!("bind {address}")),
        }
    }
    Ok(Some(opened))
}

fn open(options: &Options, address: SocketAddr) -> nix::Result<Bound> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = if options.inheritable { SockFlag::empty() } else { SockFlag::SOCK_CLOEXEC };
    let fd = socket::socket(family, SockType::Stream, flags, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &!options.strict)?;
    socket::setsockopt(&fd, sockopt::ReusePort, &options.reuseport)?;
    if address.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &options.v6only)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if !options.bind_only {
        listen(&fd, options.backlog)?;
    }
    let local: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
    let port = local
        .as_sockaddr_in()
        .map(socket::SockaddrIn::port)
        .or_else(|| local.as_sockaddr_in6().map(socket::SockaddrIn6::port))
        .unwrap_or(address.port());
    Ok(Bound { fd, address: SocketAddr::new(address.ip(), port) })
}

/// `listen()` with whatever backlog was asked for: `net.core.somaxconn` is the kernel's to apply,
/// and may be more than the constant that nix refuses to exceed.
fn listen(fd: &OwnedFd, backlog: i32) -> nix::Result<()> {
    // SAFETY: listen takes two integers and touches no memory of ours.
    Errno::result(unsafe { nix::libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Sends the listener's descriptor to a socket nobody reads, and closes it here.
pub(crate) fn put_in_flight(listener: Bound) -> Result<Held> {
    let (sender, receiver) =
        socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .context("socketpair")?;
    let descriptors = [listener.fd.as_raw_fd()];
    socket::sendmsg::<UnixAddr>(
        sender.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    )
    .context("sendmsg with SCM_RIGHTS")?;
    drop(listener);
    Ok(Held::InFlight { _sender: sender, _receiver: receiver })
}

/// Registers the listener with an io_uring, and closes it here: the ring has the only file.
pub(crate) fn register(listener: Bound) -> Result<Held> {
    /// `struct io_uring_params` of `linux/io_uring.h`: all of it zero asks for the defaults.
    const PARAMS: usize = 120;
    const IORING_REGISTER_FILES: i32 = 2;
    let mut params = [0_u8; PARAMS];
    // SAFETY: the kernel reads and writes one `struct io_uring_params`, which lives across the call.
    let ring = unsafe { nix::libc::syscall(nix::libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let ring = i32::try_from(Errno::result(ring).context("io_uring_setup")?)?;
    // SAFETY: the kernel has just made this descriptor and nothing else knows it.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let files = [listener.fd.as_raw_fd()];
    // SAFETY: the kernel reads as many descriptors as the last argument says.
    let registered = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_FILES,
            files.as_ptr(),
            files.len(),
        )
    };
    Errno::result(registered).context("io_uring_register")?;
    drop(listener);
    Ok(Held::Registered { _ring: ring })
}

/// A connection whose source port the kernel itself chose to be `port`.
///
/// `IP_LOCAL_PORT_RANGE` (since Linux 6.3) narrows the choice to one port; where
/// it does not help, because the port lies outside `ip_local_port_range` or the kernel is older,
/// an explicit bind gives the same conflict.
pub(crate) fn client_from(port: u16) -> Result<(TcpStream, TcpListener)> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for the client")?;
    let to = server.local_addr()?;
    let stream = match connect_from(port, to, true) {
        Ok(stream) if stream.local_addr()?.port() == port => stream,
        Ok(_) | Err(_) => connect_from(port, to, false)?,
    };
    ensure!(stream.local_addr()?.port() == port, "the client did not get port {port}");
    Ok((stream, server))
}

fn connect_from(port: u16, to: SocketAddr, auto: bool) -> Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if auto {
        narrow_port_range(&fd, port)?;
    } else {
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
            .with_context(|| format!("bind port {port}"))?;
    }
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connect to {to}"))?;
    Ok(TcpStream::from(fd))
}

fn narrow_port_range(fd: &OwnedFd, port: u16) -> Result<()> {
    // include/uapi/linux/in.h: low bound in the low half, high bound in the high half.
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let range = u32::from(port) | (u32::from(port) << 16);
    // SAFETY: the option value is a u32 that lives across the call, and its size is passed along.
    let result = unsafe {
        nix::libc::setsockopt(
            fd.as_raw_fd(),
            nix::libc::SOL_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            size_of::<u32>() as nix::libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).context("set IP_LOCAL_PORT_RANGE")
}

/// `count` connections to `to`, kept.
pub(crate) fn connect_many(to: SocketAddr, count: usize) -> Result<Vec<Held>> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    (0..count)
        .map(|number| {
            let stream = TcpStream::connect(to).with_context(|| format!("connection {number}"))?;
            Ok(Held::Connection { _stream: stream })
        })
        .collect()
}

fn cookie(fd: &OwnedFd) -> Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as nix::libc::socklen_t;
    // SAFETY: the buffer is a u64 that lives across the call, and `size` says so.
    let result = unsafe {
        nix::libc::getsockopt(
            fd.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    Errno::result(result).context("get SO_COOKIE")?;
    Ok(cookie)
}

/// Accepts one waiting connection.
pub(crate) fn accept(listener: &Bound) -> Option<OwnedFd> {
    let raw = socket::accept4(listener.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
    // SAFETY: accept4 has just made this descriptor and nothing else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(raw) })
}
