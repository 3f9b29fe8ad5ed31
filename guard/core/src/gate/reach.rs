//! Whom the end of a stale owner reaches besides the owners.

use std::collections::{BTreeMap, BTreeSet};

use super::escalation::First;
use super::{Plan, Reach};
use crate::model::{Process, ProcessId, ProcessState, Seen, Tgid, UnitId};
use crate::policy::{self, Class, Judgement, Reason};

/// Everybody that is reached, judged, or who stands in the way of that.
pub(super) struct Reached {
    /// May be ended too.
    pub(super) stale: Vec<(ProcessId, Judgement)>,
    /// May not be ended, so nobody is.
    pub(super) refused: Vec<(ProcessId, Judgement)>,
}

/// `owners` are the stale owners, `processes` everybody on this machine.
pub(super) fn reached(
    plan: &Plan,
    owners: &[(ProcessId, Judgement)],
    processes: &BTreeMap<Tgid, Process>,
    seen_at_request: &BTreeSet<ProcessId>,
) -> Reached {
    let mut reached = Reached { stale: Vec::new(), refused: Vec::new() };
    let owner_ids: BTreeSet<ProcessId> = owners.iter().map(|(id, _)| *id).collect();
    let mut cgroups = BTreeSet::new();
    if plan.reach == Reach::Cgroup {
        for (id, _) in owners {
            let Some(process) = processes.get(&id.tgid).filter(|process| process.id == *id) else { continue };
            match own_cgroup(process) {
                Some(cgroup) => {
                    cgroups.insert(cgroup.to_owned());
                }
                None => {
                    let cgroup = process.cgroup.clone().unwrap_or_else(|| "(none)".to_owned());
                    let reasons = vec![Reason::CgroupIsShared(cgroup)];
                    reached.refused.push((*id, Judgement { class: Class::Protected, reasons }));
                }
            }
        }
    }
    for process in processes.values().filter(|process| !owner_ids.contains(&process.id)) {
        let judgement = match plan.reach {
            Reach::Owners => continue,
            Reach::Tree => {
                let by_descent = ancestor_among(&owner_ids, process, processes);
                let Some(kin) = by_descent
                    .map(Kin::Descendant)
                    .or_else(|| leader_among(&owner_ids, process, processes).map(Kin::GroupMember))
                else {
                    continue;
                };
                judge_kin(plan, process, kin, seen_at_request)
            }
            Reach::Cgroup => {
                let path = process.cgroup.as_deref().unwrap_or_default();
                if !cgroups.iter().any(|cgroup| lies_in(path, cgroup)) {
                    continue;
                }
                policy::judge(process, &plan.rules, &plan.asker, seen_at_request)
            }
        };
        // What is dead or dying already needs no signal and has nothing to lose.
        let dead = process.state == ProcessState::Zombie && process.exe == Seen::Absent;
        match judgement.class {
            _ if dead || judgement.is_for_want_of_evidence() => {}
            Class::Stale => reached.stale.push((process.id, judgement)),
            Class::Newcomer => {}
            Class::Current | Class::Foreign | Class::Protected => {
                reached.refused.push((process.id, judgement));
            }
        }
    }
    reached
}

/// The members of one cgroup whose end is due, when they are all there is in it.
pub(super) fn whole_cgroup(due: &[ProcessId], processes: &BTreeMap<Tgid, Process>) -> Option<String> {
    let first = processes.get(&due.first()?.tgid)?;
    let cgroup = own_cgroup(first)?;
    let members = || {
        processes.values().filter(|process| {
            process.cgroup.as_deref().is_some_and(|path| lies_in(path, cgroup))
                && !(process.state == ProcessState::Zombie && process.exe == Seen::Absent)
        })
    };
    let all_due = members().all(|process| due.contains(&process.id));
    let all_in = due.iter().all(|id| members().any(|process| process.id == *id));
    (all_due && all_in).then(|| cgroup.to_owned())
}

/// The cgroup that the process shares with nobody but its own service: that of
/// its unit, or the one that it is in where that is not systemd's. `None` for a
/// login session, a user's manager, a slice and the root.
fn own_cgroup(process: &Process) -> Option<&str> {
    let path = process.cgroup.as_deref().filter(|path| path.len() > 1)?;
    let Some(unit) = UnitId::of_cgroup(path) else {
        let last = path.rsplit('/').next()?;
        return (!last.ends_with(".slice")).then_some(path);
    };
    let name = unit.name.as_str();
    if name.starts_with("session-") || name.starts_with("user@") || name == "init.scope" {
        return None;
    }
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        if part.strip_prefix('_').unwrap_or(part) == name {
            return path.get(..end);
        }
        end += 1;
    }
    None
}

fn lies_in(path: &str, cgroup: &str) -> bool {
    path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The stale owner that the process descends from.
fn ancestor_among<'a>(
    owners: &BTreeSet<ProcessId>,
    process: &Process,
    processes: &'a BTreeMap<Tgid, Process>,
) -> Option<&'a Process> {
    let mut at = process;
    // A table that was read while processes were reparented could hold a cycle.
    for _ in 0..processes.len() {
        at = processes.get(&at.parent?)?;
        if owners.contains(&at.id) {
            return processes.get(&at.id.tgid);
        }
    }
    None
}

/// The stale owner that leads the group of the process. A group that nobody of the owners leads may
/// be a script's, with portguard itself in it.
fn leader_among<'a>(
    owners: &BTreeSet<ProcessId>,
    process: &Process,
    processes: &'a BTreeMap<Tgid, Process>,
) -> Option<&'a Process> {
    let leader = processes.get(&process.group?)?;
    (owners.contains(&leader.id) && leader.group == Some(leader.id.tgid)).then_some(leader)
}

/// What a process is to a stale owner.
#[derive(Clone, Copy)]
enum Kin<'a> {
    /// A child of it, or a child's child.
    Descendant(&'a Process),
    /// In the group that it leads, whoever its parent is by now.
    GroupMember(&'a Process),
}

/// Kinship recognises a process, unless somebody else has it in hand: another
/// service than its kin's, or a container.
fn judge_kin(
    plan: &Plan,
    process: &Process,
    kin: Kin<'_>,
    seen_at_request: &BTreeSet<ProcessId>,
) -> Judgement {
    let by_itself = policy::judge(process, &plan.rules, &plan.asker, seen_at_request);
    if by_itself.class != Class::Foreign || by_itself.is_for_want_of_evidence() {
        return by_itself;
    }
    let (owner, reason) = match kin {
        Kin::Descendant(root) => (root, Reason::DescendsFrom(root.id)),
        Kin::GroupMember(leader) => (leader, Reason::InGroupOf(leader.id)),
    };
    if in_other_hands(process, owner) {
        return by_itself;
    }
    Judgement { class: Class::Stale, reasons: vec![reason] }
}

/// Somebody else has `process` in hand than has `other`: another service, a container.
fn in_other_hands(process: &Process, other: &Process) -> bool {
    // Without a unit on either side the path itself has to tell: a container's lies elsewhere.
    let unit = process.unit();
    let same_unit = unit.is_some() && unit == other.unit();
    let below = match (&process.cgroup, &other.cgroup) {
        (Some(path), Some(other)) => path == other || (other.len() > 1 && lies_in(path, other)),
        _ => false,
    };
    !below && !same_unit && !process.is_unsupervised()
}

/// Judges a process anew whose drain budget is spent, as a look after that shows it.
///
/// Whom it descends from may be gone by now: that was so, and stays so. Not so
/// where somebody else has taken it in hand since, whatever the rules say.
pub(super) fn judge_again(
    plan: &Plan,
    process: &Process,
    first: Option<&First>,
    seen_at_request: &BTreeSet<ProcessId>,
) -> Judgement {
    let by_itself = policy::judge(process, &plan.rules, &plan.asker, seen_at_request);
    let recognised = matches!(by_itself.class, Class::Stale | Class::Foreign);
    let Some(first) = first.filter(|_| recognised && !by_itself.is_for_want_of_evidence()) else {
        return by_itself;
    };
    // Of a dead one the kernel shows another cgroup, too: the root, or one that is "(deleted)". Never another unit's.
    let deleted = process.cgroup.as_ref().is_some_and(|path| path.ends_with(" (deleted)"));
    let told = process.exe != Seen::Absent || (process.unit().is_some() && !deleted);
    let moved = |then: &&Process| told && then.cgroup != process.cgroup && in_other_hands(process, then);
    if let Some(then) = first.process.as_ref().filter(moved) {
        let path = |process: &Process| process.cgroup.clone().unwrap_or_else(|| "(none)".to_owned());
        let reasons = vec![Reason::Moved { from: path(then), to: path(process) }];
        return Judgement { class: Class::Foreign, reasons };
    }
    let is_kin = |reason: &Reason| matches!(reason, Reason::DescendsFrom(_) | Reason::InGroupOf(_));
    if by_itself.class == Class::Foreign && first.judgement.reasons.iter().any(is_kin) {
        return first.judgement.clone();
    }
    by_itself
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StartTime, Uid};

    fn at(cgroup: &str) -> Process {
        Process {
            id: ProcessId { tgid: Tgid(7), start: StartTime(1) },
            parent: None,
            uid: Uid(0),
            comm: "node".to_owned(),
            exe: Seen::Absent,
            exe_deleted: false,
            argv: Seen::Absent,
            cgroup: Some(cgroup.to_owned()),
            kernel_thread: false,
            state: ProcessState::Sleeping,
            group: None,
            wait_channel: None,
        }
    }

    #[test]
    fn a_cgroup_that_others_share_is_never_taken_for_the_service_s_own() {
        for (path, own) in [
            ("/system.slice/x.service", Some("/system.slice/x.service")),
            ("/system.slice/x.service/worker/1", Some("/system.slice/x.service")),
            (
                "/user.slice/user-7.slice/user@7.service/app.slice/y.service/w",
                Some("/user.slice/user-7.slice/user@7.service/app.slice/y.service"),
            ),
            ("/system.slice/run-r0.scope", Some("/system.slice/run-r0.scope")),
            ("/docker/0123", Some("/docker/0123")),
            ("/user.slice/user-7.slice/session-3.scope", None),
            ("/user.slice/user-7.slice/user@7.service/init.scope", None),
            ("/user.slice/user-7.slice/user@7.service", None),
            ("/system.slice", None),
            ("/init.scope", None),
            ("/", None),
        ] {
            assert_eq!(own_cgroup(&at(path)), own, "{path}");
        }
    }

    #[test]
    fn a_dead_process_whose_cgroup_is_gone_has_not_moved() {
        let plan = crate::gate::toy::plan(Vec::new());
        let exe = Seen::Known("/usr/bin/openclaw".to_owned());
        let then = Process { exe, ..at("/system.slice/x.service") };
        let reasons = vec![Reason::AnyOwner];
        let judgement = Judgement { class: Class::Stale, reasons };
        let first = First { judgement, process: Some(then.clone()) };
        let moved = |now: &Process| {
            let judgement = judge_again(&plan, now, Some(&first), &[now.id].into());
            matches!(judgement.reasons[..], [Reason::Moved { .. }])
        };
        let there = "/system.slice/y.service".to_owned();
        assert!(moved(&Process { cgroup: Some(there), ..then.clone() }));
        assert!(!moved(&then));
        let mut rules = crate::gate::toy::plan(Vec::new());
        rules.rules.any_owner = true;
        let dead = at("/system.slice/x.service (deleted)");
        let judgement = judge_again(&rules, &dead, Some(&first), &[dead.id].into());
        assert_eq!(judgement.class, Class::Stale);
    }

    #[test]
    fn a_containers_process_is_not_ended_for_its_descent() {
        let plan = Plan { reach: Reach::Tree, ..crate::gate::toy::plan(Vec::new()) };
        let judged = |child: &str, root: &str| {
            let exe = Seen::Known("/usr/bin/node".to_owned());
            let child = Process { exe, ..at(child) };
            judge_kin(&plan, &child, Kin::Descendant(&at(root)), &[child.id].into()).class
        };
        for (child, root) in [("/docker/0123", "/"), ("/libpod_parent/x", "/docker/0123"), ("/one", "/one.d")]
        {
            assert_eq!(judged(child, root), Class::Foreign, "{child} below {root}");
        }
        for (child, root) in [("/one/worker", "/one"), ("/one", "/one"), ("/", "/one")] {
            assert_eq!(judged(child, root), Class::Stale, "{child} below {root}");
        }
    }

    /// Whoever started both may be a script, whose group portguard shares.
    #[test]
    fn a_group_is_reached_only_through_the_owner_that_leads_it() {
        let plan = Plan { reach: Reach::Tree, ..crate::gate::toy::plan(Vec::new()) };
        let exe = Seen::Known("/usr/bin/node".to_owned());
        let member = |tgid: u32, group: u32| {
            let id = ProcessId { tgid: Tgid(tgid), start: StartTime(1) };
            Process { id, group: Some(Tgid(group)), exe: exe.clone(), ..at("/") }
        };
        let reached_by = |owner: &Process, others: &[Process]| {
            let all: BTreeMap<Tgid, Process> =
                others.iter().chain([owner]).map(|process| (process.id.tgid, process.clone())).collect();
            let seen = all.values().map(|process| process.id).collect();
            let stale = Judgement { class: Class::Stale, reasons: vec![Reason::AnyOwner] };
            let reached = reached(&plan, &[(owner.id, stale)], &all, &seen);
            assert!(reached.refused.is_empty());
            reached.stale
        };
        let leader = member(7, 7);
        let found = reached_by(&leader, &[member(8, 7), member(9, 9)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].0.tgid, &found[0].1.reasons[..]),
            (Tgid(8), &[Reason::InGroupOf(leader.id)][..])
        );
        assert_eq!(reached_by(&member(8, 7), &[leader, member(9, 7)]), []);
    }

    #[test]
    fn a_cgroup_is_ended_as_a_whole_only_when_everybody_in_it_is_due() {
        let (one, mut two) = (at("/system.slice/x.service"), at("/system.slice/x.service/worker"));
        two.id.tgid = Tgid(8);
        let mut other = at("/system.slice/x.service.d");
        other.id.tgid = Tgid(9);
        let all: BTreeMap<Tgid, Process> =
            [one.clone(), two.clone(), other].map(|process| (process.id.tgid, process)).into();
        assert_eq!(whole_cgroup(&[one.id, two.id], &all).as_deref(), Some("/system.slice/x.service"));
        assert_eq!(whole_cgroup(&[one.id], &all), None);
        assert_eq!(whole_cgroup(&[], &all), None);
    }
}
