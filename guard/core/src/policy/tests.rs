use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::{ProcessState, Tgid};

mod units;

#[derive(Debug)]
struct Contains(String);

impl Pattern for Contains {
    fn is_match(&self, text: &str) -> bool {
        text.contains(&self.0)
    }

    fn source(&self) -> &str {
        &self.0
    }
}

const REQUESTED: StartTime = StartTime(1_000);
const GUARD: ProcessId = id(50, 990);
const PARENT: ProcessId = id(40, 500);
const GRANDPARENT: ProcessId = id(1, 0);
const OURS: &str = "/system.slice/openclaw.service";

const fn id(tgid: u32, start: u64) -> ProcessId {
    ProcessId { tgid: Tgid(tgid), start: StartTime(start) }
}

fn asker() -> Asker {
    Asker {
        process: GUARD,
        ancestors: vec![PARENT, GRANDPARENT],
        ancestry_hidden: false,
        cgroup: Some(OURS.to_owned()),
        uid: Uid(7),
        may_signal_others: false,
        requested: REQUESTED,
    }
}

fn gateway() -> Process {
    Process {
        id: id(100, 900),
        parent: Some(Tgid(1)),
        uid: Uid(7),
        comm: "MainThread".to_owned(),
        exe: Seen::Known("/usr/bin/node".to_owned()),
        exe_deleted: false,
        argv: Seen::Known(vec!["openclaw-gateway".to_owned(), "--port".to_owned()]),
        cgroup: Some("/user.slice/user-7.slice/session-3.scope".to_owned()),
        kernel_thread: false,
        state: ProcessState::Sleeping,
        group: None,
        wait_channel: None,
    }
}

fn matching(patterns: &[&str]) -> Rules {
    let patterns = patterns.iter().map(|text| Box::new(Contains((*text).to_owned())) as Box<dyn Pattern>);
    Rules { patterns: patterns.collect(), ..Rules::default() }
}

fn any_owner() -> Rules {
    Rules { any_owner: true, ..Rules::default() }
}

fn judged(process: &Process, rules: &Rules) -> Judgement {
    judge(process, rules, &asker(), &BTreeSet::new())
}

fn class(process: &Process, rules: &Rules) -> Class {
    judged(process, rules).class
}

fn matched(field: Field, rule: &str, value: &str) -> Reason {
    Reason::Matched { field, rule: rule.to_owned(), value: value.to_owned() }
}

fn by_argv() -> Reason {
    matched(Field::Argv, "/openclaw/", "openclaw-gateway --port")
}

#[test]
fn a_recognised_old_process_is_stale() {
    let judgement = judged(&gateway(), &matching(&["openclaw"]));
    assert_eq!(judgement.class, Class::Stale);
    assert_eq!(judgement.reasons, [by_argv()]);
}

#[test]
fn a_replaced_executable_is_more_evidence_but_none_by_itself() {
    let replaced = Process { exe_deleted: true, ..gateway() };
    let judgement = judged(&replaced, &matching(&["openclaw"]));
    assert_eq!(judgement.reasons, [by_argv(), Reason::ExecutableDeleted("/usr/bin/node".to_owned())]);
    assert_eq!(class(&replaced, &matching(&["nginx"])), Class::Foreign);
}

#[test]
fn the_guard_and_all_its_ancestors_are_protected() {
    for (id, reason) in
        [(GUARD, Reason::Itself), (PARENT, Reason::Ancestor(1)), (GRANDPARENT, Reason::Ancestor(2))]
    {
        let judgement = judged(&Process { id, ..gateway() }, &any_owner());
        assert_eq!(judgement, Judgement { class: Class::Protected, reasons: vec![reason] });
    }
}

#[test]
fn a_reused_number_of_an_ancestor_is_no_ancestor() {
    let other = Process { id: id(PARENT.tgid.0, PARENT.start.0 + 1), ..gateway() };
    assert_eq!(class(&other, &any_owner()), Class::Stale);
}

#[test]
fn everybody_may_be_a_hidden_ancestor() {
    let asker = Asker { ancestry_hidden: true, ..asker() };
    let judgement = judge(&gateway(), &any_owner(), &asker, &BTreeSet::new());
    assert_eq!(judgement, Judgement { class: Class::Protected, reasons: vec![Reason::AncestryHidden] });
}

#[test]
fn kernel_threads_are_protected() {
    let thread = Process { kernel_thread: true, exe: Seen::Absent, argv: Seen::Absent, ..gateway() };
    assert_eq!(judged(&thread, &any_owner()).reasons, [Reason::KernelThread]);
}

#[test]
fn the_guards_own_service_is_protected_with_all_its_parts() {
    for (ours, theirs, protected) in [
        (OURS, OURS, true),
        (OURS, "/system.slice/openclaw.service/workers/1", true),
        ("/system.slice/openclaw.service/guard", OURS, true),
        ("/system.slice/openclaw.service/a.b", "/system.slice/openclaw.service/c.d", true),
        (OURS, "/system.slice/openclaw.service.d", false),
        (OURS, "/system.slice/nginx.service", false),
        (OURS, "/system.slice", false),
        // Sessions, slices, applications of one user's manager and the root say nothing.
        ("/user.slice/user-7.slice/session-3.scope", "/user.slice/user-7.slice/session-3.scope", false),
        (
            "/user.slice/user-7.slice/user@7.service/app.slice/a.scope",
            "/user.slice/user-7.slice/user@7.service",
            false,
        ),
        (
            "/user.slice/user-7.slice/user@7.service/app.slice/a.service",
            "/user.slice/user-7.slice/user@7.service/app.slice/b.service",
            false,
        ),
        ("/", "/", false),
    ] {
        let asker = Asker { cgroup: Some(ours.to_owned()), ..asker() };
        let process = Process { cgroup: Some(theirs.to_owned()), ..gateway() };
        let judgement = judge(&process, &any_owner(), &asker, &BTreeSet::new());
        assert_eq!(judgement.class == Class::Protected, protected, "{ours} {theirs}");
    }
    let nowhere = Process { cgroup: None, ..gateway() };
    assert_eq!(class(&nowhere, &any_owner()), Class::Stale);
}

#[test]
fn whoever_started_after_the_request_is_a_newcomer() {
    let newer = Process { id: id(100, 1_001), ..gateway() };
    assert_eq!(judged(&newer, &any_owner()).class, Class::Newcomer);
    assert_eq!(judged(&newer, &any_owner()).reasons, [Reason::StartedAfterRequest]);
}

#[test]
fn within_the_requests_own_tick_only_a_process_of_the_first_look_is_old() {
    let same_tick = Process { id: id(100, 1_000), ..gateway() };
    assert_eq!(class(&same_tick, &any_owner()), Class::Newcomer);
    let seen = BTreeSet::from([same_tick.id]);
    assert_eq!(judge(&same_tick, &any_owner(), &asker(), &seen).class, Class::Stale);
    let later = Process { id: id(100, 1_001), ..gateway() };
    let seen = BTreeSet::from([later.id]);
    assert_eq!(judge(&later, &any_owner(), &asker(), &seen).class, Class::Newcomer);
}

#[test]
fn rules_of_one_kind_are_alternatives() {
    assert_eq!(class(&gateway(), &matching(&["nginx", "openclaw"])), Class::Stale);
    let exe = ["/usr/bin/bun", "/usr/bin/node"].map(str::to_owned).to_vec();
    assert_eq!(class(&gateway(), &Rules { exe, ..Rules::default() }), Class::Stale);
    let comm = ["bun", "MainThread"].map(str::to_owned).to_vec();
    assert_eq!(class(&gateway(), &Rules { comm, ..matching(&["openclaw"]) }), Class::Stale);
    assert_eq!(class(&gateway(), &Rules { uid: vec![Uid(0), Uid(7)], ..Rules::default() }), Class::Stale);
}

#[test]
fn a_comm_alone_never_decides() {
    let comm = vec!["MainThread".to_owned()];
    let alone = judged(&gateway(), &Rules { comm: comm.clone(), ..Rules::default() });
    assert_eq!(alone.class, Class::Foreign);
    assert_eq!(alone.reasons, [Reason::CommAlone("MainThread".to_owned())]);
    // A pattern that only the comm satisfies is no better.
    assert_eq!(class(&gateway(), &matching(&["MainThread"])), Class::Foreign);
    assert_eq!(
        class(&gateway(), &Rules { comm, uid: vec![gateway().uid], ..Rules::default() }),
        Class::Stale
    );
}

#[test]
fn rules_of_different_kinds_must_all_hold() {
    let both = Rules { uid: vec![Uid(7)], ..matching(&["openclaw"]) };
    let judgement = judged(&gateway(), &both);
    assert_eq!(judgement.class, Class::Stale);
    assert_eq!(judgement.reasons, [by_argv(), matched(Field::Uid, "7", "7")]);
    let other_user = Process { uid: Uid(8), ..gateway() };
    let judgement = judged(&other_user, &both);
    assert_eq!(judgement.class, Class::Foreign);
    let reason = Reason::NotMatched { field: Field::Uid, rules: "7".to_owned(), value: Some("8".to_owned()) };
    assert_eq!(judgement.reasons, [reason], "only what failed is named");
}

#[test]
fn an_executable_is_compared_whole() {
    let rules = |path: &str| Rules { exe: vec![path.to_owned()], ..Rules::default() };
    assert_eq!(class(&gateway(), &rules("/usr/bin/node")), Class::Stale);
    assert_eq!(class(&gateway(), &rules("node")), Class::Foreign);
    assert_eq!(class(&gateway(), &rules("/usr/bin/nod")), Class::Foreign);
}

#[test]
fn hidden_fields_recognise_nobody_and_are_named() {
    let hidden = Process { exe: Seen::Hidden, argv: Seen::Hidden, ..gateway() };
    let judgement = judged(&hidden, &matching(&["openclaw"]));
    assert_eq!(judgement.class, Class::Foreign);
    assert_eq!(judgement.reasons, [Reason::FieldHidden(Field::Argv)]);
    let exe = Rules { exe: vec!["/usr/bin/node".to_owned()], ..Rules::default() };
    assert_eq!(judged(&hidden, &exe).reasons, [Reason::FieldHidden(Field::Exe)]);
    // What is readable still counts.
    assert_eq!(class(&hidden, &Rules { uid: vec![Uid(7)], ..Rules::default() }), Class::Stale);
}

#[test]
fn without_rules_nobody_is_recognised() {
    assert!(Rules::default().is_empty());
    let judgement = judged(&gateway(), &Rules::default());
    assert_eq!(judgement, Judgement { class: Class::Foreign, reasons: vec![Reason::NoRules] });
}

#[test]
fn any_owner_waives_recognition_only() {
    let stranger = Process { argv: Seen::Hidden, exe: Seen::Hidden, ..gateway() };
    assert_eq!(judged(&stranger, &any_owner()).reasons, [Reason::AnyOwner]);
    assert!(!any_owner().is_empty());
}

/// `do_exit()` gives up the address space before the descriptors.
#[test]
fn a_dying_process_without_exe_is_unknown_rather_than_not_matched() {
    let dying = Process { exe: Seen::Absent, argv: Seen::Absent, ..gateway() };
    let judgement = judged(&dying, &matching(&["openclaw"]));
    assert_eq!(judgement.class, Class::Foreign);
    assert!(judgement.is_for_want_of_evidence());
    assert!(judge_unread().is_for_want_of_evidence());
    // What is left of it may be enough.
    assert_eq!(class(&dying, &Rules { uid: vec![dying.uid], ..Rules::default() }), Class::Stale);
    assert!(!judged(&gateway(), &matching(&["nginx"])).is_for_want_of_evidence());
}

#[test]
fn only_root_or_the_same_user_may_signal() {
    let other = Process { uid: Uid(8), ..gateway() };
    assert!(asker().may_signal(&gateway()));
    assert!(!asker().may_signal(&other));
    assert!(Asker { may_signal_others: true, ..asker() }.may_signal(&other));
}

#[test]
fn reasons_are_words() {
    let words = [
        (Reason::Ancestor(1), "it is portguard's parent"),
        (matched(Field::Exe, "/usr/bin/node", "/usr/bin/node"), "exe matches /usr/bin/node"),
        (Reason::FieldHidden(Field::Argv), "argv is not readable for this user"),
    ];
    for (reason, expected) in words {
        assert_eq!(reason.to_string(), expected);
    }
}

fn some_id() -> impl Strategy<Value = ProcessId> {
    prop_oneof![
        Just(GUARD),
        Just(PARENT),
        Just(GRANDPARENT),
        (90..100_u32, 995..1_005_u64).prop_map(|(tgid, start)| id(tgid, start)),
    ]
}

fn some_process() -> impl Strategy<Value = Process> {
    let exe = prop_oneof![
        Just(Seen::Known("/usr/bin/node".to_owned())),
        Just(Seen::Known("/usr/sbin/nginx".to_owned())),
        Just(Seen::Hidden),
        Just(Seen::Absent),
    ];
    let argv = prop_oneof![
        Just(Seen::Known(vec!["openclaw-gateway".to_owned()])),
        Just(Seen::Known(vec!["nginx".to_owned()])),
        Just(Seen::Hidden),
        Just(Seen::Absent),
    ];
    let cgroup = proptest::option::of(proptest::sample::select(vec![
        OURS,
        "/system.slice/openclaw.service/part",
        "/system.slice/nginx.service",
        "/",
    ]));
    (some_id(), exe, argv, cgroup, any::<[bool; 2]>(), 7..9_u32).prop_map(
        |(id, exe, argv, cgroup, [kernel_thread, exe_deleted], uid)| Process {
            id,
            exe,
            argv,
            exe_deleted,
            kernel_thread,
            cgroup: cgroup.map(str::to_owned),
            uid: Uid(uid),
            ..gateway()
        },
    )
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let words = proptest::sample::subsequence(vec!["openclaw", "nginx", "MainThread"], 0..3);
    let paths = proptest::sample::subsequence(vec!["/usr/bin/node", "/usr/sbin/nginx"], 0..2);
    let users = proptest::sample::subsequence(vec![Uid(7), Uid(8)], 0..2);
    (words, paths, users, any::<bool>()).prop_map(|(words, paths, uid, any_owner)| Rules {
        exe: paths.into_iter().map(str::to_owned).collect(),
        uid,
        any_owner,
        ..matching(&words)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_lifts_protection_or_makes_a_newcomer_old(
        process in some_process(),
        one in some_rules(),
        other in some_rules(),
    ) {
        let (one, other) = (judged(&process, &one), judged(&process, &other));
        for class in [Class::Protected, Class::Newcomer] {
            prop_assert_eq!(one.class == class, other.class == class);
        }
        if matches!(one.class, Class::Protected | Class::Newcomer) {
            prop_assert_eq!(&one, &other);
        }
        prop_assert!(!one.reasons.is_empty());
    }

    #[test]
    fn another_kind_of_rule_never_recognises_more(process in some_process(), rules in some_rules(), user in 7..9_u32) {
        let rules = Rules { uid: Vec::new(), ..rules };
        if rules.is_empty() {
            return Ok(());
        }
        let before = judged(&process, &rules);
        let after = judged(&process, &Rules { uid: vec![Uid(user)], ..rules }).class;
        // A comm needs a witness, which the other kind may be; of a dying process only that is told.
        // Which service it runs in may be told as well.
        let comm_alone =
            matches!(before.reasons.as_slice(), [Reason::CommAlone(_) | Reason::NoEvidence, ..]);
        prop_assert!(after != Class::Stale || before.class == Class::Stale || comm_alone);
    }
}
