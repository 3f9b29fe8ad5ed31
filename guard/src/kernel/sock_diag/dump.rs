//! The request for a dump of both address families.

use netlink_packet_core::{NetlinkPayload, NetlinkSerializable};
use netlink_packet_sock_diag::AF_INET;

/// The message type of the request, and of the rows that answer it (`linux/inet_diag.h`).
pub(super) const TCPDIAG_GETSOCK: u16 = 18;

/// `sizeof(struct inet_diag_req)`: family, two lengths and the extensions, one byte each; `struct inet_diag_sockid` of
/// 48 bytes; the states, and a word that the kernel does not look at.
const LENGTH: usize = 60;
/// Where `idiag_sport` is in it.
const SOURCE_PORT: std::ops::Range<usize> = 4..6;
/// Where `idiag_states` is in it.
const STATES: std::ops::Range<usize> = 52..56;

/// Asks for the TCP sockets of IPv4 and IPv6 in one walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct DumpRequest {
    /// A bit for each state that is wanted.
    pub(super) states: u32,
    /// The local port; 0 for any.
    pub(super) source_port: u16,
}

impl NetlinkSerializable for DumpRequest {
    fn message_type(&self) -> u16 {
        TCPDIAG_GETSOCK
    }

    fn buffer_len(&self) -> usize {
        LENGTH
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        // Any family will do: the kernel takes it for both. No extensions: INET_DIAG_SKV6ONLY and INET_DIAG_SHUTDOWN
        // come unasked.
        buffer[0] = AF_INET;
        buffer[SOURCE_PORT].copy_from_slice(&self.source_port.to_be_bytes());
        buffer[STATES].copy_from_slice(&self.states.to_ne_bytes());
    }
}

impl From<DumpRequest> for NetlinkPayload<DumpRequest> {
    fn from(request: DumpRequest) -> Self {
        Self::InnerMessage(request)
    }
}
