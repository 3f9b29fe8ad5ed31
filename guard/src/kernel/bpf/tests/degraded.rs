//! Kernels that tell or allow less, played on this one; and development builds.

use guard_common::Settings;
use guard_core::model::ExitStatus;

use super::processes::{forked, leash, tgid, wait_for};
use super::*;
use crate::kernel::bpf::load::{Attempt, Way, load_with};
use crate::kernel::bpf::settings::KernelTypes;
use crate::kernel::bpf::tracefs::Tracefs;
use crate::kernel::btf::{BtfError, VMLINUX};
use crate::kernel::sandbox::{listening, netns};

/// Loads what is left without `refused`, with the settings changed by `edit`.
pub(super) fn lesser(
    test: &str,
    options: &BpfOptions,
    refused: &[&hook::Hook],
    edit: fn(&mut Settings),
) -> Option<Watcher> {
    drop(or_skip(test, Bpf::load(options))?);
    let refused: Vec<_> =
        refused.iter().map(|&hook| (hook, BpfError::Option { what: "refused by the test".into() })).collect();
    let types = KernelTypes::read();
    let load = |way: Way<'_>| {
        let mut attempt = Attempt::prepare(way, &types, &refused, options.failed_binds).unwrap();
        edit(&mut attempt.settings);
        attempt.run(options).map_err(|(_, error)| error)
    };
    let loaded = match options.attach {
        AttachBy::Raw => load(Way::Raw),
        _ => Tracefs::with(|tracefs| load(Way::Classic(tracefs))).unwrap(),
    };
    Some(Watcher::of(or_skip(test, loaded)?))
}

/// Whichever optional hook is refused, alone or with all the others: the tier is
/// there, says what it does without, and the end of LISTEN comes.
#[test]
fn each_optional_hook_may_be_refused() {
    const NAME: &str = "each_optional_hook_may_be_refused";
    type Is = fn(&Loss) -> bool;
    let optional: [(&hook::Hook, Is); 5] = [
        (&hook::DESTROY_SOCK, |loss| matches!(loss, Loss::ReleaseUnobserved { .. })),
        (&hook::PROCESS_EXIT, |loss| matches!(loss, Loss::ExitUnobserved { .. })),
        (&hook::PUT_PORT, |loss| matches!(loss, Loss::ReleaseNotExact { .. })),
        (&hook::TWSK_KILL, |loss| matches!(loss, Loss::TimeWaitUnseen { .. })),
        (&hook::SYS_EXIT, |loss| matches!(loss, Loss::FailedBindsUnseen { .. })),
    ];
    netns(NAME, move || {
        let port = free_port();
        let options = BpfOptions {
            attach: AttachBy::Raw,
            ports: vec![listeners(port)],
            failed_binds: FailedBinds::AtAnyCost,
            ..BpfOptions::default()
        };
        let alone = optional.iter().map(|one| vec![one]);
        for refused in alone.chain([optional.iter().collect()]) {
            let mut hooks: Vec<_> = refused.iter().map(|(hook, _)| *hook).collect();
            if hooks.contains(&&hook::SYS_EXIT) {
                hooks.push(&hook::GET_PORT);
            }
            let Some(mut watcher) = lesser(NAME, &options, &hooks, |_| ()) else { return };
            let losses = watcher.bpf.losses().to_vec();
            let unseen = hooks.contains(&&hook::DESTROY_SOCK);
            for (hook, is) in &refused {
                // Where nothing of a release is seen, its end is no loss of its own.
                let stated = losses.iter().any(is) || (unseen && **hook == hook::PUT_PORT);
                assert!(stated, "{hook:?}: {losses:?}");
            }
            drop(listening("127.0.0.1", Some(port), REUSE));
            let events = if unseen { 2 } else { 3 };
            assert_eq!(words(watcher.until("its life", |seen| seen.len() == events)), LIFE[..events]);
            assert_eq!(watcher.remembered(), 0);
        }
    });
}

/// A kernel without BTF.
fn untold() -> KernelTypes {
    let source = std::io::Error::from(std::io::ErrorKind::NotFound);
    KernelTypes::unknown(BtfError::Read { path: VMLINUX, source })
}

#[test]
fn raw_tracepoints_are_the_first_choice() {
    const NAME: &str = "raw_tracepoints_are_the_first_choice";
    netns(NAME, || {
        let asked = |attach| Bpf::load(&BpfOptions { attach, ..BpfOptions::default() });
        if or_skip(NAME, asked(AttachBy::Raw)).is_none() {
            return;
        }
        let bpf = asked(AttachBy::Auto).unwrap();
        assert_eq!((bpf.attached_by(), bpf.why_classic()), (AttachedBy::Raw, None));
    });
}

#[test]
fn a_kernel_without_types_gets_classic_tracepoints() {
    const NAME: &str = "a_kernel_without_types_gets_classic_tracepoints";
    netns(NAME, || {
        let port = free_port();
        let mut options = BpfOptions {
            ports: vec![listeners(port)],
            failed_binds: FailedBinds::AtAnyCost,
            ..BpfOptions::default()
        };
        let Some(bpf) = or_skip(NAME, load_with(&options, &untold())) else { return };
        let unseen = |loss: &Loss| matches!(loss, Loss::FailedBindsUnseen { why } if why.contains(VMLINUX));
        assert!(bpf.losses().iter().any(unseen), "{:?}", bpf.losses());
        assert_eq!(bpf.attached_by(), AttachedBy::Classic);
        let why = bpf.why_classic().unwrap();
        assert!(why.contains("raw tracepoint") && why.contains(VMLINUX), "{why}");
        assert!(bpf.losses().iter().any(|loss| matches!(loss, Loss::NamespacesUnknown { .. })));
        let mut watcher = Watcher::of(bpf);
        drop(listening("127.0.0.1", Some(port), REUSE));
        assert_eq!(words(watcher.until_released(port)), LIFE);

        options.attach = AttachBy::Raw;
        let refused = load_with(&options, &untold()).unwrap_err();
        assert!(matches!(refused, BpfError::Unsupported { .. }), "{refused}");
    });
}

#[test]
fn without_the_release_hook_the_ends_of_listen_still_come() {
    const NAME: &str = "without_the_release_hook_the_ends_of_listen_still_come";
    each_way(NAME, |attach| {
        let port = free_port();
        let options = BpfOptions { attach, ports: vec![listeners(port)], ..BpfOptions::default() };
        let Some(mut watcher) = lesser(NAME, &options, &[&hook::DESTROY_SOCK], |_| ()) else { return };
        let expected = Loss::ReleaseUnobserved { why: "refused by the test".into() };
        assert!(watcher.bpf.losses().contains(&expected), "{:?}", watcher.bpf.losses());
        drop(listening("127.0.0.1", Some(port), REUSE));
        assert_eq!(words(watcher.until("the end of LISTEN", |seen| seen.len() == 2)), LIFE[..2]);
        assert_eq!(watcher.remembered(), 0, "nobody would take the entry out");
    });
}

#[test]
fn without_namespaces_the_port_is_watched_in_all_of_them() {
    const NAME: &str = "without_namespaces_the_port_is_watched_in_all_of_them";
    each_way(NAME, |attach| {
        let port = free_port();
        let options = BpfOptions { attach, ports: vec![listeners(port)], ..BpfOptions::default() };
        let blind = |settings: &mut Settings| (settings.sock_net, settings.net_inum) = (0, 0);
        let Some(mut watcher) = lesser(NAME, &options, &[], blind) else { return };
        elsewhere(move || drop(listening("0.0.0.0", Some(port), REUSE)));
        let seen = watcher.until_released(port);
        assert_eq!(words(seen), LIFE);
        assert!(seen.iter().all(|event| socket(event).netns.is_none()));
    });
}

#[test]
fn the_one_byte_protocol_of_old_kernels_works() {
    const NAME: &str = "the_one_byte_protocol_of_old_kernels_works";
    if cfg!(target_endian = "big") {
        return;
    }
    netns(NAME, || {
        let port = free_port();
        let options =
            BpfOptions { attach: AttachBy::Classic, ports: vec![listeners(port)], ..BpfOptions::default() };
        // On a little-endian machine the first byte of the two is the same number.
        let Some(mut watcher) = lesser(NAME, &options, &[], |settings| settings.ctx_protocol_size = 1) else {
            return;
        };
        drop(listening("127.0.0.1", Some(port), REUSE));
        assert_eq!(words(watcher.until_released(port)), LIFE);
    });
}

#[test]
fn the_end_of_a_group_is_found_without_the_tracepoint_s_field() {
    const NAME: &str = "the_end_of_a_group_is_found_without_the_tracepoint_s_field";
    fn untold(settings: &mut Settings) {
        (settings.ctx_group_dead, settings.raw_group_dead) = (0, 0);
    }
    let by_leader: fn(&mut Settings) = |settings| {
        untold(settings);
        settings.signal_live = 0;
    };
    let without_status: fn(&mut Settings) = |settings| settings.signal_flags = 0;
    each_way_alone(NAME, move |attach| {
        for (edit, status) in [
            (untold as fn(&mut Settings), Some(ExitStatus::Code(9))),
            (by_leader, Some(ExitStatus::Code(9))),
            (without_status, None),
        ] {
            let options = BpfOptions { attach, ..BpfOptions::default() };
            let Some(mut watcher) = lesser(NAME, &options, &[], edit) else { return };
            let (ours, theirs) = leash();
            let child = forked(|| {
                wait_for(&ours);
                9
            });
            watcher.bpf.own(tgid(child)).unwrap();
            nix::unistd::write(&theirs, b"x").unwrap();
            let seen = watcher.until("an exit", |seen| !seen.is_empty());
            assert_eq!(words(seen), [format!("exited {status:?}")]);
            nix::sys::wait::waitpid(child, None).unwrap();
        }
    });
}

#[test]
fn a_development_build_logs_what_it_sends_when_asked() {
    const NAME: &str = "a_development_build_logs_what_it_sends_when_asked";
    each_way(NAME, |attach| {
        let port = free_port();
        let options = BpfOptions { attach, ports: vec![listeners(port)], log: true, ..BpfOptions::default() };
        let Some(mut watcher) = Watcher::load(NAME, &options) else { return };
        // An object built without the feature has no log.
        let Some(mut log) = watcher.bpf.take_log() else { return };
        // Else the exit of `inet_put_port` tells of it, which logs nothing.
        let at_destroy = watcher.bpf.losses().iter().any(|loss| matches!(loss, Loss::ReleaseNotExact { .. }));
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.subscriber(), || {
            drop(listening("127.0.0.1", Some(port), REUSE));
            watcher.until_released(port);
            log.flush();
        });
        let text = lines.text();
        let released = at_destroy.then(|| format!("port {port}: released"));
        for part in std::iter::once(format!("port {port}: state 7 -> 10")).chain(released) {
            assert!(text.contains(&part), "{part:?} is not in: {text}");
        }
    });
}

/// What was logged, in memory.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Lines {
    fn subscriber(&self) -> impl tracing::Subscriber + use<> {
        let lines = self.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || lines.clone())
            .finish()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
