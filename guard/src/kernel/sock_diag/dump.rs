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

/// `struct nlattr`: length and type, two bytes each.
const ATTRIBUTE_HEADER: usize = 4;
/// The attribute that is a program for the choice of rows.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// `struct inet_diag_bc_op`: what to do, and by how many bytes to go on when the answer is yes (one byte), and when it
/// is no (two).
const OPERATION: usize = 4;
/// Goes on as if the answer were no.
const JUMP: u8 = 1;
/// Is the local port the one that the next operation has in the place of its "no"? Since Linux 4.16.
const SOURCE_PORT_IS: u8 = 11;

/// Asks for the TCP sockets of IPv4 and IPv6 in one walk.
#[derive(Clone, Debug)]
pub(super) struct DumpRequest {
    /// A bit for each state that is wanted.
    pub(super) states: u32,
    /// The local ports; none: any.
    pub(super) source_ports: Vec<u16>,
}

impl DumpRequest {
    /// What the kernel shall run for each row, where it is not enough to name one port. Whoever gets to its end is shown,
    /// and whoever gets further is not.
    fn choice(&self) -> Vec<u8> {
        let ports = &self.source_ports;
        if ports.len() < 2 {
            return Vec::new();
        }
        let mut code = Vec::new();
        let mut operation = |what: u8, yes: u8, no: u16| {
            code.extend([what, yes]);
            code.extend(no.to_ne_bytes());
        };
        const COMPARISON: usize = 2 * OPERATION;
        for (later, port) in (0..ports.len()).rev().zip(ports) {
            // Past the jump to the end, which the last one does without.
            operation(SOURCE_PORT_IS, COMPARISON as u8, (COMPARISON + OPERATION) as u16);
            operation(0, 0, *port);
            if later > 0 {
                let end = later * (COMPARISON + OPERATION);
                operation(JUMP, OPERATION as u8, end as u16);
            }
        }
        code
    }
}

impl NetlinkSerializable for DumpRequest {
    fn message_type(&self) -> u16 {
        TCPDIAG_GETSOCK
    }

    fn buffer_len(&self) -> usize {
        match self.choice().len() {
            0 => LENGTH,
            choice => LENGTH + ATTRIBUTE_HEADER + choice,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        // Any family will do: the kernel takes it for both. No extensions: INET_DIAG_SKV6ONLY and INET_DIAG_SHUTDOWN
        // come unasked.
        buffer[0] = AF_INET;
        buffer[STATES].copy_from_slice(&self.states.to_ne_bytes());
        if let [port] = self.source_ports[..] {
            buffer[SOURCE_PORT].copy_from_slice(&port.to_be_bytes());
        }
        let choice = self.choice();
        if !choice.is_empty() {
            let length = (ATTRIBUTE_HEADER + choice.len()) as u16;
            let attribute = [length, INET_DIAG_REQ_BYTECODE].map(u16::to_ne_bytes).concat();
            buffer[LENGTH..].copy_from_slice(&[attribute, choice].concat());
        }
    }
}

impl From<DumpRequest> for NetlinkPayload<DumpRequest> {
    fn from(request: DumpRequest) -> Self {
        Self::InnerMessage(request)
    }
}
