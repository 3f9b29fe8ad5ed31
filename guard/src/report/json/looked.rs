//! What a look found, as JSON.

use std::time::Duration;

use guard_core::gate::{Gate, Goal, JudgedHolder};
use guard_core::model::{BindSpec, Verdict};

use super::judged::decision;
use super::sockets::{bind, holder};
use super::{Endpoint, EndpointVerdict, Snapshot, micros, words};
use crate::report::human;
use crate::runtime::Tier;

pub(super) fn endpoint(spec: &BindSpec) -> Endpoint {
    Endpoint {
        address: spec.address,
        port: spec.port.get(),
        v6only: spec.v6only,
        reuse_address: spec.reuse_address,
        reuse_port: spec.reuse_port,
    }
}

pub(super) fn snapshot(
    gate: &Gate,
    holders: &[JudgedHolder],
    tier: Tier,
    took: Option<Duration>,
) -> Snapshot {
    let verdicts = gate.verdicts();
    let whole = words::overall(&verdicts);
    let (reason, transient) = match whole {
        Verdict::Unknown { reason, .. } => (Some(words::unknown(reason)), Some(reason.is_transient())),
        Verdict::Busy { holders } if holders.is_empty() && gate.decision().is_some() => {
            (Some(human::NOBODY.to_owned()), None)
        }
        Verdict::Busy { .. } | Verdict::Free => (None, None),
    };
    let prospects = words::prospects(gate);
    let endpoints = gate
        .plan()
        .endpoints
        .iter()
        .zip(&verdicts)
        .enumerate()
        .map(|(index, (spec, verdict))| EndpointVerdict {
            binds: prospects.get(index).into_iter().flatten().map(bind).collect(),
            endpoint: endpoint(spec),
            verdict: words::verdict_word(verdict),
            reason: match verdict {
                Verdict::Unknown { reason, .. } => Some(words::unknown(reason)),
                Verdict::Busy { .. } | Verdict::Free => None,
            },
        })
        .collect();
    // The gate may have opened since this look: its holders were in the way then.
    let was_busy = matches!(whole, Verdict::Free) && holders.iter().any(|judged| judged.holder.certain);
    Snapshot {
        verdict: if was_busy { "busy" } else { words::verdict_word(whole) },
        reason,
        transient,
        tier: tier.name(),
        endpoints,
        holders: holders.iter().map(holder).collect(),
        holders_left_out: 0,
        decision: match whole {
            _ if gate.plan().goal == Goal::Wait => None,
            Verdict::Free => None,
            Verdict::Busy { .. } | Verdict::Unknown { .. } => gate.decision().map(decision),
        },
        took_us: took.map(micros),
    }
}
