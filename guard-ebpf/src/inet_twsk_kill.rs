//! Entry and exit of `inet_twsk_kill`: a TIME_WAIT (or FIN_WAIT2) mini-socket goes,
//! whatever for. At the exit it may be freed, so the entry remembers it.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use guard_common::{KIND_TIME_WAIT_ENDED, LostReason, TimeWaitEvent, WatchKey, watch};

use crate::emit::{emit, header};
use crate::function::address;
use crate::maps;
use crate::settings::setting;
use crate::skip::{Skip, settle};
use crate::socket::{netns, port_is_watched, read};

#[fentry(function = "inet_twsk_kill")]
fn pg_twsk_enter(ctx: FEntryContext) {
    settle(try_enter(&ctx));
}

#[fexit(function = "inet_twsk_kill")]
fn pg_twsk_exit(ctx: FExitContext) {
    settle(try_exit(&ctx));
}

#[inline(always)]
fn try_enter(ctx: &impl EbpfContext) -> Result<(), Skip> {
    let mini = address::<0>(ctx)?;
    let port_be: u16 = read(mini, setting!(mini_port) as usize).map_err(|_| LostReason::ReadSocket)?;
    let port = u16::from_be(port_be);
    if !port_is_watched(port) {
        return Err(Skip::Unrelated);
    }
    // It begins with the same structure as a full socket.
    let key = WatchKey::new(netns(mini)?, port);
    // SAFETY: the value is one aligned word; a removal meanwhile costs one event more or less.
    let Some(&flags) = (unsafe { maps::WATCHED.get(key) }) else {
        return Err(Skip::Unrelated);
    };
    if flags & watch::CONNECTIONS == 0 {
        return Err(Skip::Unrelated);
    }
    maps::LEAVING.insert(mini, key, 0).map_err(|_| LostReason::ClosingFull.into())
}

#[inline(always)]
fn try_exit(ctx: &impl EbpfContext) -> Result<(), Skip> {
    let mini = address::<0>(ctx)?;
    // SAFETY: the value is copied at once; only this function's end removes its entry.
    let Some(&key) = (unsafe { maps::LEAVING.get(mini) }) else {
        return Err(Skip::Unrelated);
    };
    // It is there, so this hardly fails; an entry left behind costs one hint too many.
    let _removed = maps::LEAVING.remove(mini);
    emit(TimeWaitEvent {
        header: header::<TimeWaitEvent>(KIND_TIME_WAIT_ENDED),
        netns: key.netns,
        port: key.port,
        pad: 0,
    })
}
