//! Judgements, decisions and exits, as JSON.

use guard_core::gate::{Decision, Rival};
use guard_core::model::{ExitStatus, Manager, ProcessId};
use guard_core::policy::{Class, Judgement, Reason};

use super::{DecisionBody, How, RefusedOwner, RivalBody, Why, words};

pub(super) fn decision(decision: Decision) -> DecisionBody {
    let bare = |process: &ProcessId| RefusedOwner {
        pid: process.tgid.0,
        start: process.start.0,
        class: None,
        reasons: Vec::new(),
    };
    match decision {
        Decision::Wait => DecisionBody { action: "wait", processes: Vec::new(), detail: None },
        Decision::End(stale) => {
            DecisionBody { action: "end", processes: stale.iter().map(refused_owner).collect(), detail: None }
        }
        Decision::Evict(sockets) => {
            let sockets: Vec<String> = sockets.iter().map(words::socket).collect();
            DecisionBody { action: "evict", processes: Vec::new(), detail: Some(sockets.join("; ")) }
        }
        Decision::Refuse(refused) => DecisionBody {
            action: "refuse",
            processes: refused.iter().map(refused_owner).collect(),
            detail: None,
        },
        Decision::NotPermitted(processes) => DecisionBody {
            action: "not_permitted",
            processes: processes.iter().map(bare).collect(),
            detail: None,
        },
        Decision::CannotTell(reason) => DecisionBody {
            action: "cannot_tell",
            processes: Vec::new(),
            detail: Some(words::unknown(&reason)),
        },
    }
}

pub(super) fn refused_owner((process, judgement): &(ProcessId, Judgement)) -> RefusedOwner {
    let class: Class = judgement.class;
    RefusedOwner {
        pid: process.tgid.0,
        start: process.start.0,
        class: Some(class.name()),
        reasons: whys(judgement),
    }
}

pub(super) fn whys(judgement: &Judgement) -> Vec<Why> {
    let why = |reason: &Reason| Why {
        code: reason.code(),
        kind: reason.kind(),
        value: reason.value(),
        rule: reason.rule().map(str::to_owned),
        text: reason.to_string(),
    };
    judgement.reasons.iter().map(why).collect()
}

pub(super) fn rival(rival: &Rival) -> RivalBody {
    let manager = rival.unit.as_ref().map(|unit| unit.manager);
    RivalBody {
        pid: rival.id.tgid.0,
        start: rival.id.start.0,
        unit: rival.unit.as_ref().map(|unit| unit.name.to_string()),
        unit_of_user: manager.and_then(|manager| match manager {
            Manager::System => None,
            Manager::User(uid) => Some(uid.0),
        }),
        parent: rival.parent.as_ref().map(|(pid, _)| pid.0),
        parent_comm: rival.parent.as_ref().map(|(_, comm)| comm.clone()),
    }
}

pub(super) fn how(status: Option<ExitStatus>) -> How {
    match status {
        Some(ExitStatus::Code(code)) => {
            How { exit_code: Some(code), signal: None, core_dumped: None, out_of_memory: false }
        }
        Some(ExitStatus::Signal { number, core_dumped }) => How {
            exit_code: None,
            signal: Some(number),
            core_dumped: Some(core_dumped),
            out_of_memory: false,
        },
        Some(ExitStatus::OutOfMemory) => {
            How { exit_code: None, signal: Some(9), core_dumped: Some(false), out_of_memory: true }
        }
        None => How { exit_code: None, signal: None, core_dumped: None, out_of_memory: false },
    }
}
