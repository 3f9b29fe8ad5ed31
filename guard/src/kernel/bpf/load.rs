//! The fixed order: globals → load → fill maps → attach.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{self, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Btf, Ebpf, include_bytes_aligned};
use guard_common::{LostReason, Settings, map, symbol};
use tracing::debug;

use super::hook::{DESTROY_SOCK, GET_PORT, Hook, PROCESS_EXIT, PUT_PORT, SET_STATE, SYS_EXIT, TWSK_KILL};
use super::loader::loader;
use super::numbered::{Numbers, numbered};
use super::settings::{KernelTypes, resolve_pid_namespace};
use super::task_file::{OwnerLookup, OwnerTypes};
use super::{
    AttachBy, AttachedBy, Bpf, BpfError, BpfOptions, FailedBinds, Loss, Plain, bind_failed, inet_put_port,
    inet_sock_set_state, inet_twsk_kill, log, sched_process_exit, tcp_destroy_sock,
};
use crate::kernel::bpf::tracefs::Tracefs;
use crate::kernel::features;

/// Empty in a stub build.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portguard.bpf.o"));

/// The smallest page of any architecture that runs BPF; the loader rounds a
/// ring buffer up to the real one.
const SMALLEST_PAGE: u32 = 4096;

/// Which kind of tracepoint to attach to, with what that needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    Raw,
    Classic(&'a Tracefs),
}

/// Loads the programs in the way that the options ask for.
pub(super) fn load(options: &BpfOptions) -> Result<Bpf, BpfError> {
    if cfg!(bpf_stub) || OBJECT.is_empty() {
        return Err(BpfError::Stub);
    }
    let ring = options.ring_bytes;
    if !ring.is_power_of_two() || ring < SMALLEST_PAGE {
        return Err(BpfError::Option {
            what: format!(
                "a ring buffer of {ring} bytes is not possible: give a power of two of at least {SMALLEST_PAGE}"
            ),
        });
    }
    load_with(options, &KernelTypes::read())
}

pub(super) fn load_with(options: &BpfOptions, types: &KernelTypes) -> Result<Bpf, BpfError> {
    let raw = || load_by(options, types, Way::Raw);
    let classic = || Tracefs::with(|tracefs| load_by(options, types, Way::Classic(tracefs)))?;
    match options.attach {
        AttachBy::Raw => raw(),
        AttachBy::Classic => classic(),
        AttachBy::Auto => match raw() {
            // Classic tracepoints need all that raw ones need, and tracefs: where
            // permissions are missing, the first answer is the better advice.
            Err(error) if !error.is_denied() => match classic() {
                Ok(bpf) => Ok(Bpf { why_classic: Some(error.to_string()), ..bpf }),
                Err(second) => Err(BpfError::neither_way(error, second, &features::no_lockdown())),
            },
            outcome => outcome,
        },
    }
}

/// Loads as many hooks as this kernel takes. A refused optional hook is left
/// out and everything begins anew, because the others are told by a read-only
/// setting whether it is there.
fn load_by(options: &BpfOptions, types: &KernelTypes, way: Way<'_>) -> Result<Bpf, BpfError> {
    let mut refused: Vec<(&Hook, BpfError)> = Vec::new();
    loop {
        match Attempt::prepare(way, types, &refused, options.failed_binds)?.run(options) {
            Ok(bpf) => return Ok(bpf),
            Err((Some(hook), error)) if *hook != SET_STATE => refused.push((hook, error)),
            Err((_, error)) => return Err(error),
        }
    }
}

/// What is decided before anything is loaded.
pub(super) struct Attempt {
    pub(super) settings: Settings,
    by: AttachedBy,
    hooks: Vec<&'static Hook>,
    losses: Vec<Loss>,
    owners: Result<OwnerTypes, BpfError>,
    numbers: Numbers,
}

impl Attempt {
    pub(super) fn prepare(
        way: Way<'_>,
        types: &KernelTypes,
        refused: &[(&Hook, BpfError)],
        failed_binds: FailedBinds,
    ) -> Result<Self, BpfError> {
        let mut settings = Settings::default();
        let mut losses = Vec::new();
        let why_not =
            |hook: &Hook| refused.iter().find(|(refused, _)| *refused == hook).map(|(_, error)| error);
        // The other two come first: once state changes are seen, nothing of what
        // follows them may be missed.
        let mut hooks = Vec::new();
        type Fit = fn(Way<'_>, &KernelTypes, &mut Settings) -> Result<(), BpfError>;
        type Without = fn(String) -> Loss;
        let optional: [(&Hook, Fit, Without); 2] = [
            (&DESTROY_SOCK, tcp_destroy_sock::fit, |why| Loss::ReleaseUnobserved { why }),
            (&PROCESS_EXIT, sched_process_exit::fit, |why| Loss::ExitUnobserved { why }),
        ];
        for (hook, fit, loss) in optional {
            if let Some(error) = why_not(hook) {
                losses.push(loss(error.to_string()));
                continue;
            }
            match (fit(way, types, &mut settings), way) {
                (Ok(()), _) => hooks.push(hook),
                // Without all of them the classic ones are the better choice.
                (Err(error), Way::Raw) => return Err(error),
                (Err(error), Way::Classic(_)) => losses.push(loss(error.to_string())),
            }
        }
        type FitFunction = fn(&KernelTypes, &mut Settings) -> Result<(), BpfError>;
        let functions: [(&Hook, FitFunction, Without); 2] = [
            (&PUT_PORT, inet_put_port::fit, |why| Loss::ReleaseNotExact { why }),
            (&TWSK_KILL, inet_twsk_kill::fit, |why| Loss::TimeWaitUnseen { why }),
        ];
        for (hook, fit, loss) in functions {
            // The exact release is looked for where the beginning of one is seen.
            if *hook == PUT_PORT && !hooks.contains(&&DESTROY_SOCK) {
                continue;
            }
            let fitting = match why_not(hook) {
                Some(error) => Err(error.to_string()),
                None => fit(types, &mut settings).map_err(|error| error.to_string()),
            };
            match fitting {
                // Before those who rely on them.
                Ok(()) => hooks.insert(0, hook),
                Err(why) => losses.push(loss(why)),
            }
        }
        inet_sock_set_state::fit(way, types, &mut settings)?;
        hooks.push(&SET_STATE);
        if failed_binds != FailedBinds::Unseen {
            let on_function = match why_not(&GET_PORT) {
                Some(error) => Err(error.to_string()),
                None => bind_failed::fit_function(types, &mut settings).map_err(|error| error.to_string()),
            };
            let chosen = on_function.map(|()| &GET_PORT).or_else(|why| match why_not(&SYS_EXIT) {
                Some(error) => Err(error.to_string()),
                None if failed_binds == FailedBinds::WhereCheap => Err(why),
                None => bind_failed::fit_calls(types, &mut settings)
                    .map(|()| &SYS_EXIT)
                    .map_err(|e| e.to_string()),
            });
            match chosen {
                Ok(hook) => hooks.push(hook),
                Err(why) => losses.push(Loss::FailedBindsUnseen { why }),
            }
        }
        types.resolve(&mut settings, &mut losses);
        resolve_pid_namespace(&mut settings, &mut losses);
        let by = match way {
            Way::Raw => AttachedBy::Raw,
            Way::Classic(_) => AttachedBy::Classic,
        };
        Ok(Self { settings, by, hooks, losses, owners: types.owners(), numbers: types.numbers() })
    }

    /// On an error, also the hook that it concerns.
    pub(super) fn run(self, options: &BpfOptions) -> Result<Bpf, (Option<&'static Hook>, BpfError)> {
        let alone = |error| (None, error);
        let mut ebpf = self.load(options).map_err(alone)?;
        let numbers = self.numbered().map_err(alone)?;
        for &hook in &self.hooks {
            #[cfg(test)]
            super::refusal::check(hook).map_err(|error| (Some(hook), error))?;
            hook.load(&mut ebpf, self.by, &numbers).map_err(|error| (Some(hook), error))?;
        }
        let log = if options.log { log::take(&mut ebpf).map_err(alone)? } else { None };
        let mut bpf = self.fill(ebpf, options, log).map_err(alone)?;
        for &hook in &self.hooks {
            let attached = hook.attach(&mut bpf.ebpf, self.by).map_err(|error| (Some(hook), error))?;
            bpf.misses.extend(attached.misses);
            if *hook == SET_STATE {
                bpf.state_link = attached.link;
            }
        }
        // The others do not depend on it.
        match self.owners.and_then(|_| OwnerLookup::take(&mut bpf.ebpf, &numbers)) {
            Ok(lookup) => bpf.owner_lookup = Some(lookup),
            Err(error) => bpf.losses.push(Loss::OwnersFromProc { why: error.to_string() }),
        }
        Ok(bpf)
    }

    /// The numbers of everything that is put on one.
    fn numbered(&self) -> Result<Btf, BpfError> {
        let hooks = self.hooks.iter().filter_map(|hook| {
            let named = hook.numbered(self.by)?;
            Some((named, *self.numbers.get(named.name())?))
        });
        let iterator = self.owners.as_ref().ok().map(OwnerTypes::target);
        numbered(&hooks.chain(iterator).collect::<Vec<_>>())
    }

    /// Sets the globals and creates the maps.
    fn load(&self, options: &BpfOptions) -> Result<Ebpf, BpfError> {
        let settings = Plain(self.settings);
        let offsets = Plain(self.owners.as_ref().map(|types| types.here()).unwrap_or_default());
        let mut loader = loader();
        loader
            .override_global(symbol::SETTINGS, &settings, true)
            .override_global(symbol::OWNER_OFFSETS, &offsets, true)
            .map_max_entries(map::EVENTS, options.ring_bytes);
        if !options.may_rest {
            loader.map_max_entries(map::KNOWN, 1);
        }
        if !options.log {
            loader.override_global(log::LEVEL, &0u8, false);
        }
        loader.load(OBJECT).map_err(|error| BpfError::sort("load", "the embedded BPF object", error))
    }

    /// Takes the maps over and enters what is known before the first event.
    fn fill(&self, mut ebpf: Ebpf, options: &BpfOptions, log: Option<log::BpfLog>) -> Result<Bpf, BpfError> {
        let mut bpf = Bpf {
            events: take::<RingBuf<MapData>>(&mut ebpf, map::EVENTS)?,
            watched: take::<maps::HashMap<MapData, Plain<guard_common::WatchKey>, u32>>(
                &mut ebpf,
                map::WATCHED,
            )?,
            ports: take::<maps::Array<MapData, u64>>(&mut ebpf, map::PORTS)?,
            known: take::<maps::HashMap<MapData, u64, Plain<guard_common::WatchKey>>>(&mut ebpf, map::KNOWN)?,
            owners: take::<maps::HashMap<MapData, u32, u32>>(&mut ebpf, map::OWNERS)?,
            lost: take::<PerCpuArray<MapData, [u64; LostReason::ALL.len()]>>(&mut ebpf, map::LOST)?,
            misses: Vec::new(),
            malformed: 0,
            watches: BTreeMap::new(),
            namespaces: self.settings.net_inum != 0,
            may_rest: options.may_rest
                && self.by == AttachedBy::Raw
                && self.settings.observe_release == 1
                && self.settings.sock_cookie != 0,
            state_link: None,
            entered: BTreeSet::new(),
            losses: self.losses.clone(),
            attached_by: self.by,
            why_classic: None,
            log,
            owner_lookup: None,
            ebpf,
        };
        for watch in &options.ports {
            bpf.watch(*watch)?;
        }
        for owner in &options.owners {
            bpf.own(*owner)?;
        }
        Ok(bpf)
    }
}

/// Loads the iterator over open files alone.
pub(super) fn owner_lookup(types: &KernelTypes) -> Result<OwnerLookup, BpfError> {
    if cfg!(bpf_stub) || OBJECT.is_empty() {
        return Err(BpfError::Stub);
    }
    let types = types.owners()?;
    owner_lookup_alone(types).or_else(|error| {
        debug!(%error, "the iterator over open files takes longer to load");
        owner_lookup_by_aya(types)
    })
}

/// The same without aya's loader, which takes twice as long. Its errors give no advice.
pub(super) fn owner_lookup_alone(types: OwnerTypes) -> Result<OwnerLookup, BpfError> {
    let (_, target) = types.target();
    OwnerLookup::alone(OBJECT, target, Plain(types.here()))
        .map_err(|error| BpfError::failed("load", "the embedded BPF object alone", error))
}

/// The same, as the programs of the tier are loaded. The other maps go with this function.
pub(super) fn owner_lookup_by_aya(types: OwnerTypes) -> Result<OwnerLookup, BpfError> {
    let offsets = Plain(types.here());
    let mut loader = loader();
    // The kernel makes all entries of a hash along with it.
    for unused in [map::KNOWN, map::WATCHED, map::CLOSING, map::LEAVING, map::OWNERS, map::LOSERS] {
        loader.map_max_entries(unused, 1);
    }
    let mut ebpf = loader
        .override_global(symbol::OWNER_OFFSETS, &offsets, true)
        .override_global(log::LEVEL, &0u8, false)
        .map_max_entries(map::EVENTS, SMALLEST_PAGE)
        .load(OBJECT)
        .map_err(|error| BpfError::sort("load", "the embedded BPF object", error))?;
    OwnerLookup::take(&mut ebpf, &numbered(&[types.target()])?)
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, BpfError> {
    let map = ebpf.take_map(name).ok_or(BpfError::missing("map", name))?;
    T::try_from(map).map_err(|error| BpfError::map("use", name, error))
}
