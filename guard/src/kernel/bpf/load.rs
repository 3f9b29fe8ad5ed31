//! The fixed order: globals → load → fill maps → attach.

use std::collections::BTreeMap;

use aya::maps::{self, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::TracePoint;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use guard_common::{LostReason, Settings, map, symbol};

use super::hook::{DESTROY_SOCK, Hook, PROCESS_EXIT, SET_STATE};
use super::lost::Misses;
use super::{
    Bpf, BpfError, BpfOptions, Loss, Plain, inet_sock_set_state, log, sched_process_exit, settings,
    tcp_destroy_sock,
};
use crate::kernel::tracefs::{Tracefs, TracefsError};

/// Empty in a stub build.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portguard.bpf.o"));

/// The smallest page of any architecture that runs BPF; the loader rounds a
/// ring buffer up to the real one.
const SMALLEST_PAGE: u32 = 4096;

/// Loads the programs where tracefs can be seen.
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
    Tracefs::with(|tracefs| load_here(options, tracefs))?
}

/// Loads as many hooks as this kernel takes. A refused optional hook is left
/// out and everything begins anew, because the others are told by a read-only
/// setting whether it is there.
fn load_here(options: &BpfOptions, tracefs: &Tracefs) -> Result<Bpf, BpfError> {
    let mut refused: Vec<(&Hook, BpfError)> = Vec::new();
    loop {
        match Attempt::prepare(tracefs, &refused)?.run(options) {
            Ok(bpf) => return Ok(bpf),
            Err((Some(hook), error)) if *hook != SET_STATE => refused.push((hook, error)),
            Err((_, error)) => return Err(error),
        }
    }
}

/// What is decided before anything is loaded.
pub(super) struct Attempt {
    pub(super) settings: Settings,
    hooks: Vec<&'static Hook>,
    losses: Vec<Loss>,
}

impl Attempt {
    pub(super) fn prepare(tracefs: &Tracefs, refused: &[(&Hook, BpfError)]) -> Result<Self, BpfError> {
        let mut settings = Settings::default();
        let mut losses = Vec::new();
        // The other two come first: once state changes are seen, nothing of what
        // follows them may be missed.
        let mut hooks = Vec::new();
        type Fit = fn(&Tracefs, &mut Settings) -> Result<(), TracefsError>;
        type Without = fn(String) -> Loss;
        let optional: [(&Hook, Fit, Without); 2] = [
            (&DESTROY_SOCK, tcp_destroy_sock::fit, |why| Loss::ReleaseUnobserved { why }),
            (&PROCESS_EXIT, sched_process_exit::fit, |why| Loss::ExitUnobserved { why }),
        ];
        for (hook, fit, loss) in optional {
            if let Some((_, error)) = refused.iter().find(|(refused, _)| *refused == hook) {
                losses.push(loss(error.to_string()));
                continue;
            }
            match fit(tracefs, &mut settings) {
                Ok(()) => hooks.push(hook),
                Err(error) => losses.push(loss(error.to_string())),
            }
        }
        inet_sock_set_state::fit(tracefs, &mut settings)?;
        hooks.push(&SET_STATE);
        settings::resolve_members(&mut settings, &mut losses);
        settings::resolve_pid_namespace(&mut settings, &mut losses);
        Ok(Self { settings, hooks, losses })
    }

    /// On an error, also the hook that it concerns.
    pub(super) fn run(self, options: &BpfOptions) -> Result<Bpf, (Option<&'static Hook>, BpfError)> {
        let alone = |error| (None, error);
        let mut ebpf = self.load(options).map_err(alone)?;
        for &hook in &self.hooks {
            let program = program(&mut ebpf, hook).map_err(|error| (Some(hook), error))?;
            let refused = |error| (Some(hook), BpfError::sort("load", subject(hook), error));
            program.load().map_err(refused)?;
        }
        let log = if options.log { log::take(&mut ebpf).map_err(alone)? } else { None };
        let mut bpf = self.fill(ebpf, options, log).map_err(alone)?;
        for &hook in &self.hooks {
            let program = program(&mut bpf.ebpf, hook).map_err(|error| (Some(hook), error))?;
            let refused = |error| (Some(hook), BpfError::sort("attach", subject(hook), error));
            // The link stays in `ebpf` and is detached when that is dropped.
            let _link = program.attach(hook.event.category, hook.event.name).map_err(refused)?;
            bpf.misses.extend(program.fd().ok().and_then(Misses::of));
        }
        Ok(bpf)
    }

    /// Sets the globals and creates the maps.
    fn load(&self, options: &BpfOptions) -> Result<Ebpf, BpfError> {
        let settings = Plain(self.settings);
        let mut loader = EbpfLoader::new();
        // The programs use no relocation against the kernel's types.
        loader
            .btf(None)
            .override_global(symbol::SETTINGS, &settings, true)
            .map_max_entries(map::EVENTS, options.ring_bytes);
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
            owners: take::<maps::HashMap<MapData, u32, u32>>(&mut ebpf, map::OWNERS)?,
            lost: take::<PerCpuArray<MapData, [u64; LostReason::ALL.len()]>>(&mut ebpf, map::LOST)?,
            misses: Vec::new(),
            malformed: 0,
            watches: BTreeMap::new(),
            namespaces: self.settings.net_inum != 0,
            losses: self.losses.clone(),
            log,
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

fn subject(hook: &Hook) -> String {
    format!("the program on {}:{}", hook.event.category, hook.event.name)
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &Hook) -> Result<&'a mut TracePoint, BpfError> {
    let program = ebpf.program_mut(hook.program).ok_or(BpfError::missing("program", hook.program))?;
    program.try_into().map_err(|error| BpfError::sort("use", subject(hook), error))
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, BpfError> {
    let map = ebpf.take_map(name).ok_or(BpfError::missing("map", name))?;
    T::try_from(map).map_err(|error| BpfError::map("use", name, error))
}
