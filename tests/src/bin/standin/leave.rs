//! Connections, and what is left of them, in a state that was asked for.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;

use crate::options::Left;
use crate::sockets::{self, Bound, Held};

/// `TCP_FIN_WAIT2` of `include/net/tcp_states.h`.
const FIN_WAIT2: u8 = 5;

/// Leaves a connection of `listener` in this state.
pub(crate) fn on_listener(listener: &Bound, left: Left) -> Result<Option<Held>> {
    let acceptor = TcpListener::from(listener.fd.try_clone()?);
    let mut to = listener.address;
    if to.ip().is_unspecified() {
        to.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let far = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    let (near, _) = acceptor.accept().context("accept")?;
    leave(near, far, left)
}

/// Leaves a client's connection from `port` in this state.
pub(crate) fn on_client(port: u16, left: Left) -> Result<Option<Held>> {
    let (near, server) = sockets::client_from(port)?;
    let (far, _) = server.accept().context("accept the client")?;
    leave(near, far, left)
}

/// What has to stay open for that; nothing for TIME_WAIT.
fn leave(mut near: TcpStream, mut far: TcpStream, left: Left) -> Result<Option<Held>> {
    let near = match left {
        Left::Established => Some(near),
        Left::CloseWait => {
            far.shutdown(Shutdown::Write).context("close the far side")?;
            ensure!(near.read(&mut [0])? == 0, "the far side's FIN did not arrive");
            Some(near)
        }
        Left::FinWait => {
            near.shutdown(Shutdown::Write).context("close the near side")?;
            ensure!(far.read(&mut [0])? == 0, "the near side's FIN did not arrive");
            until_state(&near, FIN_WAIT2)?;
            Some(near)
        }
        Left::Orphan => {
            near.shutdown(Shutdown::Write).context("close the near side")?;
            ensure!(far.read(&mut [0])? == 0, "the near side's FIN did not arrive");
            until_state(&near, FIN_WAIT2)?;
            drop(near);
            None
        }
        // The near side's read sees the end of file only after the far side's FIN was
        // processed in FIN_WAIT2, and that is the step which makes the TIME_WAIT socket.
        Left::TimeWait => {
            near.shutdown(Shutdown::Write).context("close the near side")?;
            ensure!(far.read(&mut [0])? == 0, "the near side's FIN did not arrive");
            drop(far);
            ensure!(near.read(&mut [0])? == 0, "the far side's FIN did not arrive");
            return Ok(None);
        }
    };
    Ok(Some(Held::Pair { _near: near, _far: far }))
}

/// The acknowledgement of a FIN has no event of its own.
fn until_state(stream: &TcpStream, wanted: u8) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    while state(stream)? != wanted {
        ensure!(Instant::now() < end, "the connection never came to state {wanted}");
        std::thread::yield_now();
    }
    Ok(())
}

/// `tcpi_state`, the first byte of `struct tcp_info`.
fn state(stream: &TcpStream) -> Result<u8> {
    let mut state = 0_u8;
    let mut size = size_of::<u8>() as libc::socklen_t;
    // SAFETY: the buffer is one byte that lives across the call, and `size` says so.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut size,
        )
    };
    Errno::result(result).context("get TCP_INFO")?;
    Ok(state)
}
