use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use guard_common::{
    ABI, Header, KIND_BIND_FAILED, KIND_EXITED, KIND_PORT_PUT, KIND_RELEASED, KIND_STATE_CHANGED,
    KIND_TIME_WAIT_ENDED, SocketEvent, TCP_CLOSE, TCP_LISTEN,
};
use guard_core::model::{ExitStatus, Instant, NetnsInode, Port, SocketCookie, TcpState, Tgid};

use super::bind_failed::{self, BindFailed};
use super::inet_twsk_kill::{self, TimeWaitEnded};
use super::{inet_sock_set_state, sched_process_exit, tcp_destroy_sock};

/// What a BPF program reported. Every event is a hint: a reason to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A socket on a watched port is about to begin to listen, or to stop.
    StateChanged(StateChanged),
    /// The kernel destroys a socket on a watched port; the port is released
    /// well under a microsecond later, or was just now.
    Released(Released),
    /// The last thread of an owner exits; its sockets are still open.
    Exited(Exited),
    /// A TIME_WAIT or FIN_WAIT2 socket on a watched port is gone.
    TimeWaitEnded(TimeWaitEnded),
    /// Somebody else failed to bind a watched port.
    BindFailed(BindFailed),
    /// A record of a kind that this version does not know.
    Unknown {
        /// Number of the kind.
        kind: u16,
        /// When.
        at: Instant,
    },
}

/// `sock:inet_sock_set_state`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChanged {
    /// Just before the new state was stored.
    pub at: Instant,
    /// Which socket.
    pub socket: KernelSocket,
    /// State left.
    pub old: TcpState,
    /// State about to be entered.
    pub new: TcpState,
    /// Who called `listen()` or ended it; `None` for a task outside the guard's PID namespace.
    pub actor: Option<Actor>,
}

impl StateChanged {
    /// The socket is about to listen.
    pub fn opens_listener(&self) -> bool {
        self.new == TcpState::Listen
    }

    /// A listener is about to stop listening. A new connection's first change
    /// also reads "from LISTEN" and is none: the kernel makes it as a copy.
    pub fn closes_listener(&self) -> bool {
        self.old == TcpState::Listen && self.new == TcpState::Close
    }
}

/// `tcp:tcp_destroy_sock`, or for a listener the exit of `inet_put_port`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Just before the bind bucket is released, or just after.
    pub at: Instant,
    /// It was just after: nothing of this socket is in anybody's way any more.
    pub exact: bool,
    /// Which socket. Its address may be used for another one from now on.
    pub socket: KernelSocket,
    /// It had been listening on the watched port.
    pub was_listener: bool,
    /// Who closed the listener; `None` for a connection.
    pub actor: Option<Actor>,
}

/// `sched:sched_process_exit` of a thread group's last thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Before the descriptors are closed.
    pub at: Instant,
    /// Which thread group.
    pub tgid: Tgid,
    /// What `wait(2)` will report; `None` when the kernel's types are unknown.
    pub status: Option<ExitStatus>,
    /// `comm` of the thread that exited last.
    pub comm: String,
}

/// Address of a `struct sock`: names a socket until it is destroyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkAddr(pub u64);

impl fmt::Debug for SkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SkAddr({:#x})", self.0)
    }
}

/// A socket as the kernel's tracepoints describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSocket {
    /// Identity for the life of the socket.
    pub skaddr: SkAddr,
    /// Identity for the life of the machine, once anybody asked for it.
    pub cookie: Option<SocketCookie>,
    /// `None` on a kernel that does not tell the programs.
    pub netns: Option<NetnsInode>,
    /// Local address; an IPv4-mapped one shows as IPv4 with `mapped` set.
    pub local: IpAddr,
    /// Local port.
    pub port: Port,
    /// `None` for a listener.
    pub remote: Option<(IpAddr, u16)>,
    /// The socket is AF_INET6 and its local address IPv4-mapped.
    pub mapped: bool,
}

/// The task that acted on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Its thread group.
    pub tgid: Tgid,
    /// `comm` of the thread.
    pub comm: String,
}

/// A record that is shorter than its kind, or of another ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Event {
    /// Decodes one record of the ring buffer.
    // One copy of the code, whoever calls: see `rehearse`.
    #[inline(never)]
    pub(super) fn decode(record: &[u8]) -> Result<Self, Malformed> {
        let header: Header = copy(record)?;
        if header.abi != ABI || header.size as usize > record.len() {
            return Err(Malformed);
        }
        Ok(match header.kind {
            KIND_STATE_CHANGED => Self::StateChanged(inet_sock_set_state::decode(&copy(record)?)?),
            KIND_RELEASED | KIND_PORT_PUT => Self::Released(tcp_destroy_sock::decode(&copy(record)?)?),
            KIND_TIME_WAIT_ENDED => Self::TimeWaitEnded(inet_twsk_kill::decode(&copy(record)?)?),
            KIND_EXITED => Self::Exited(sched_process_exit::decode(&copy(record)?)),
            KIND_BIND_FAILED => Self::BindFailed(bind_failed::decode(&copy(record)?)?),
            kind => Self::Unknown { kind, at: instant(&header) },
        })
    }

    /// What the programs report of a listener that closes, of none that there is. To decode it ahead of time brings
    /// into memory, and into the processor's caches, what a gate would otherwise wait for.
    pub(super) fn rehearse(mut sink: impl FnMut(Self)) {
        for kind in [KIND_STATE_CHANGED, KIND_RELEASED] {
            let size = size_of::<SocketEvent>();
            let record = SocketEvent {
                header: Header { abi: ABI, kind, size: size as u32, ktime_ns: 0 },
                skaddr: 0,
                cookie: 0,
                netns: 0,
                tgid: 1,
                family: 0,
                local_port: 1,
                remote_port: 0,
                old_state: TCP_LISTEN,
                new_state: TCP_CLOSE,
                local_addr: [0; 16],
                remote_addr: [0; 16],
                comm: *b"rehearsal\0\0\0\0\0\0\0",
            };
            if let Ok(event) = Self::decode(std::hint::black_box(bytes(&record))) {
                sink(event);
            }
        }
    }
}

impl KernelSocket {
    pub(super) fn decode(event: &SocketEvent) -> Result<Self, Malformed> {
        let local = Ipv6Addr::from(event.local_addr);
        let remote = Ipv6Addr::from(event.remote_addr).to_canonical();
        Ok(Self {
            skaddr: SkAddr(event.skaddr),
            cookie: (event.cookie != 0).then_some(SocketCookie(event.cookie)),
            netns: (event.netns != 0).then_some(NetnsInode(event.netns.into())),
            local: local.to_canonical(),
            port: Port::new(event.local_port).ok_or(Malformed)?,
            remote: (event.remote_port != 0).then_some((remote, event.remote_port)),
            mapped: i32::from(event.family) == AF_INET6 && local.to_ipv4_mapped().is_some(),
        })
    }
}

const AF_INET6: i32 = nix::sys::socket::AddressFamily::Inet6 as i32;

impl Actor {
    pub(super) fn decode(event: &SocketEvent) -> Option<Self> {
        (event.tgid != 0).then(|| Self { tgid: Tgid(event.tgid), comm: comm(&event.comm) })
    }
}

pub(super) fn instant(header: &Header) -> Instant {
    Instant::from_nanos(header.ktime_ns)
}

/// The bytes before the first NUL; any process may write any bytes there.
pub(super) fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A wire struct.
///
/// # Safety
///
/// Every combination of bytes is a valid value, and there is no padding.
pub(super) unsafe trait Wire: Copy {}

// SAFETY: integers and byte arrays without padding, asserted in guard-common.
unsafe impl Wire for Header {}
// SAFETY: as above.
unsafe impl Wire for SocketEvent {}
// SAFETY: as above.
unsafe impl Wire for guard_common::ExitEvent {}
// SAFETY: as above.
unsafe impl Wire for guard_common::BindFailedEvent {}
// SAFETY: as above.
unsafe impl Wire for guard_common::TimeWaitEvent {}

fn bytes<T: Wire>(value: &T) -> &[u8] {
    // SAFETY: a `Wire` value has no padding, so all of its bytes are initialized.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The beginning of `record` as a `T`; it may be longer.
pub(super) fn copy<T: Wire>(record: &[u8]) -> Result<T, Malformed> {
    let bytes = record.get(..size_of::<T>()).ok_or(Malformed)?;
    // SAFETY: `bytes` is as long as a `T`, any bytes are a valid `T`, and the read
    // asks for no alignment.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use guard_common::{EXIT_STATUS_KNOWN, ExitEvent};

    use super::*;

    fn header(kind: u16, size: usize) -> Header {
        Header { abi: ABI, kind, size: size as u32, ktime_ns: 42 }
    }

    fn socket_event(kind: u16) -> SocketEvent {
        SocketEvent {
            header: header(kind, size_of::<SocketEvent>()),
            skaddr: 0xffff_8880_0000_1000,
            cookie: 0,
            netns: 4_026_531_840,
            tgid: 7,
            family: 10,
            local_port: 18789,
            remote_port: 0,
            old_state: TCP_LISTEN,
            new_state: TCP_CLOSE,
            local_addr: Ipv6Addr::UNSPECIFIED.octets(),
            remote_addr: [0; 16],
            comm: *b"openclaw-gatewa\0",
        }
    }

    #[test]
    fn a_listener_that_closes() {
        let Ok(Event::StateChanged(event)) = Event::decode(bytes(&socket_event(KIND_STATE_CHANGED))) else {
            panic!("not a state change");
        };
        assert!(event.closes_listener() && !event.opens_listener());
        assert_eq!(event.at, Instant::from_nanos(42));
        assert_eq!(event.socket.netns, Some(NetnsInode(4_026_531_840)));
        assert_eq!(event.socket.cookie, None);
        assert_eq!(event.socket.remote, None);
        assert_eq!(event.actor, Some(Actor { tgid: Tgid(7), comm: "openclaw-gatewa".into() }));
    }

    #[test]
    fn an_ipv4_connection_of_a_dual_stack_listener_is_mapped() {
        let mut wire = socket_event(KIND_RELEASED);
        wire.local_addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1];
        wire.remote_addr = wire.local_addr;
        (wire.remote_port, wire.old_state, wire.new_state, wire.tgid) = (4000, 0, 0, 0);
        let Ok(Event::Released(event)) = Event::decode(bytes(&wire)) else {
            panic!("not a release");
        };
        let localhost: IpAddr = [127, 0, 0, 1].into();
        assert_eq!((event.socket.local, event.socket.mapped), (localhost, true));
        assert_eq!(event.socket.remote, Some((localhost, 4000)));
        assert!(!event.was_listener && event.actor.is_none());
    }

    #[test]
    fn an_exit_with_and_without_a_status() {
        let mut wire = ExitEvent {
            header: header(KIND_EXITED, size_of::<ExitEvent>()),
            tgid: 9,
            status: 0x8b,
            flags: EXIT_STATUS_KNOWN,
            pad: 0,
            comm: [b'x'; 16],
        };
        let status = |wire: &ExitEvent| match Event::decode(bytes(wire)) {
            Ok(Event::Exited(event)) => event.status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(&wire), Some(ExitStatus::Signal { number: 11, core_dumped: true }));
        wire.flags = 0;
        assert_eq!(status(&wire), None);
    }

    #[test]
    fn a_rehearsal_shows_a_listener_that_closes_and_is_destroyed() {
        let mut seen = Vec::new();
        Event::rehearse(|event| seen.push(event));
        let [Event::StateChanged(closes), Event::Released(released)] = &seen[..] else { panic!("{seen:?}") };
        assert!(closes.closes_listener() && released.was_listener);
    }

    #[test]
    fn an_unknown_kind_survives() {
        let header = header(999, size_of::<Header>());
        assert_eq!(
            Event::decode(bytes(&header)),
            Ok(Event::Unknown { kind: 999, at: Instant::from_nanos(42) })
        );
    }

    #[test]
    fn a_longer_record_of_a_known_kind_is_read_by_its_beginning() {
        let mut record = bytes(&socket_event(KIND_STATE_CHANGED)).to_vec();
        record.extend([0xff; 24]);
        assert!(matches!(Event::decode(&record), Ok(Event::StateChanged(_))));
    }

    #[test]
    fn a_record_cut_off_anywhere_and_a_foreign_abi_are_malformed() {
        let mut wire = socket_event(KIND_STATE_CHANGED);
        let record = bytes(&wire).to_vec();
        for len in 0..record.len() {
            assert_eq!(Event::decode(&record[..len]), Err(Malformed), "{len} bytes");
        }
        wire.header.abi = ABI + 1;
        assert_eq!(Event::decode(bytes(&wire)), Err(Malformed));
    }
}
