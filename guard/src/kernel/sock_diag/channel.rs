//! One request, its replies: the netlink part of `sock_diag`.

use std::io;

use netlink_packet_core::{
    DecodeError, DoneBuffer, ErrorBuffer, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::errno::Errno;
use nix::libc::MSG_TRUNC;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::dump::TCPDIAG_GETSOCK;
use super::{NEEDS_DIAG, SockDiagError};

/// The kernel fills at most 32 KiB per datagram of a dump (`netlink_recvmsg`
/// remembers the largest buffer offered, capped at that).
const BUFFER: usize = 32 * 1024;

/// The kernel answers within the request itself, so a reply that stays away
/// this many seconds will not come. It only keeps a bug from hanging a run.
const SILENCE_SECONDS: i64 = 5;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

/// How the replies to a request ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Complete, or acknowledged.
    Whole,
    /// Something was lost on the way.
    Torn,
    /// The kernel answered with an error.
    Refused(Errno),
}

pub(super) struct Channel {
    socket: NetlinkSocket,
    /// That of the last request: so many were made.
    pub(super) sequence: u32,
    /// How many datagrams brought the rows of the last answer.
    pub(super) datagrams: usize,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn open() -> Result<Self, SockDiagError> {
        let socket = NetlinkSocket::new(NETLINK_SOCK_DIAG).map_err(opening)?;
        // Connected to the kernel (port 0), no other process can slip it a message.
        socket.connect(&SocketAddr::new(0, 0)).map_err(opening)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(SILENCE_SECONDS, 0))
            .map_err(|errno| opening(errno.into()))?;
        Ok(Self { socket, sequence: 0, datagrams: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends `message` and hands every row's payload to `row`, until the kernel
    /// says that it is done. Replies to an earlier request are passed over.
    pub(super) fn exchange<M>(
        &mut self,
        message: M,
        flags: u16,
        operation: &'static str,
        mut row: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<Ending, SockDiagError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let failed = |source| SockDiagError::Failed { operation, source };
        self.sequence = self.sequence.wrapping_add(1);
        self.send(message, flags).map_err(failed)?;
        let mut torn = false;
        let mut garbled = None;
        self.datagrams = 0;
        loop {
            torn |= self.receive().map_err(failed)?;
            let mut has_rows = false;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                // A cut-off tail shows as a message longer than the buffer.
                let Ok(message) = NetlinkBuffer::new_checked(rest) else {
                    torn = true;
                    break;
                };
                let aligned = (message.length() as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[aligned..];
                if message.sequence_number() != self.sequence {
                    continue;
                }
                torn |= message.flags() & NLM_F_DUMP_INTR != 0;
                let code = match message.message_type() {
                    SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => {
                        self.datagrams += usize::from(!std::mem::replace(&mut has_rows, true));
                        // The rest must still be read, or the next dump is EBUSY.
                        if let Err(error) = row(message.payload()) {
                            garbled.get_or_insert(error);
                        }
                        continue;
                    }
                    NLMSG_OVERRUN => {
                        torn = true;
                        continue;
                    }
                    NLMSG_NOOP => continue,
                    NLMSG_DONE => done_code(message.payload()),
                    NLMSG_ERROR => error_code(message.payload()),
                    _ => continue,
                };
                return match (garbled, code) {
                    (Some(source), _) => Err(SockDiagError::Garbled { source }),
                    (None, Err(source)) => Err(SockDiagError::Garbled { source }),
                    (None, Ok(code)) if code < 0 => Ok(Ending::Refused(Errno::from_raw(-code))),
                    (None, Ok(_)) if torn => Ok(Ending::Torn),
                    (None, Ok(_)) => Ok(Ending::Whole),
                };
            }
        }
    }

    fn send<M>(&self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        loop {
            match self.socket.send(&bytes, 0) {
                // A datagram socket takes all or nothing.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one datagram into the buffer; `true` when something was lost.
    fn receive(&mut self) -> io::Result<bool> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, MSG_TRUNC) {
                Ok(length) => return Ok(length > self.buffer.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The receive buffer overran: what follows is still to be read.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }
}

/// `NLMSG_DONE` carries the dump's result.
fn done_code(payload: &[u8]) -> Result<i32, DecodeError> {
    Ok(DoneBuffer::new_checked(payload)?.code())
}

fn error_code(payload: &[u8]) -> Result<i32, DecodeError> {
    Ok(ErrorBuffer::new_checked(payload)?.code().map_or(0, std::num::NonZeroI32::get))
}

fn opening(source: io::Error) -> SockDiagError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => {
            SockDiagError::Unsupported { needs: NEEDS_DIAG, source }
        }
        Some(Errno::EPERM | Errno::EACCES) => SockDiagError::Denied { operation: "opening", source },
        _ => SockDiagError::Failed { operation: "opening", source },
    }
}
