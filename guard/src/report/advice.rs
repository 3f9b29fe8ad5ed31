//! What somebody can do who reads a refusal, or that there is nothing to do but wait.

use std::time::Duration;

use guard_core::gate::{Gate, Goal, JudgedHolder};
use guard_core::model::{Owners, ProcessId, TcpState};
use guard_core::policy::{Class, Judgement, Reason};

use super::words::whole_seconds;

/// The way out of a refusal; nothing where the reasons say it themselves.
pub(super) fn of_refusal(refused: &[(ProcessId, Judgement)]) -> Option<&'static str> {
    let strangers: Vec<&Judgement> = refused.iter().map(|(_, judgement)| judgement).collect();
    let says_so = |judgement: &&Judgement| {
        judgement.class != Class::Foreign
            || judgement.reasons.iter().any(|reason| {
                matches!(
                    reason,
                    Reason::NoRules
                        | Reason::CommAlone(_)
                        | Reason::ServiceIsSpared(_)
                        | Reason::Moved { .. }
                )
            })
    };
    (!strangers.is_empty() && !strangers.iter().any(says_so)).then_some(
        "what to do: if that is the service, recognise it by another rule; if not, stop it by hand or give the \
         service another port (--any-owner ends whoever it is)",
    )
}

/// What a run that can end nobody waits for.
pub(super) fn of_waiting(gate: &Gate) -> Option<String> {
    let holders = gate.holders();
    let lasts: Option<Vec<Duration>> = holders.iter().map(|judged| judged.holder.socket.expires).collect();
    let by_itself = lasts.and_then(|all| all.into_iter().max());
    let nobodys_listener =
        |judged: &JudgedHolder| judged.is_kernel_held() && judged.holder.socket.state == TcpState::Listen;
    let is_connection = |judged: &JudgedHolder| {
        !matches!(judged.holder.socket.state, TcpState::Listen | TcpState::BoundInactive | TcpState::Close)
    };
    let (what, evicted) = if let Some(left) = by_itself {
        let last = if holders.len() == 1 { "it expires" } else { "the last one expires" };
        (format!("{last} in {}, so --timeout must be longer than that", whole_seconds(left)), "destroys it")
    } else if holders.iter().any(nobodys_listener) {
        let seen_whole = holders.iter().all(|judged| matches!(judged.holder.owners, Owners::All(_)));
        let shared = gate.plan().endpoints.iter().all(|spec| spec.reuse_address);
        let what = "no signal helps against a listener that no process has";
        if !seen_whole || !shared {
            // It would not be touched: somebody hidden may have it, or it would stay bound.
            return Some(what.to_owned());
        }
        (what.to_owned(), "destroys such a listener")
    } else if !holders.is_empty() && holders.iter().all(is_connection) {
        ("connections are in the way, until they are closed".to_owned(), "destroys them")
    } else {
        return None;
    };
    let evict = match gate.plan() {
        plan if plan.evict => String::new(),
        plan if plan.goal == Goal::Wait => format!("; portguard free --evict {evicted} as the last resort"),
        _ => format!("; --evict {evicted} as the last resort"),
    };
    Some(format!("{what}{evict}"))
}
