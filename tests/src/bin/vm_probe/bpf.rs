//! The kernel's answers to a process that loads and attaches BPF programs.

use std::collections::BTreeMap;

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

use crate::trace::{Call, Memory, Observer};

/// What portguard's programs are called begins with this; a loader tries the kernel with others.
const PREFIX: &str = "pg_";

/// Commands of `enum bpf_cmd`.
const PROG_LOAD: u64 = 5;
const RAW_TRACEPOINT_OPEN: u64 = 17;
const LINK_CREATE: u64 = 28;

/// Offsets in `union bpf_attr`.
const LOG: u64 = 24;
const NAME: u64 = 48;
const RAW_TRACEPOINT_PROGRAM: u64 = 8;

/// `_IOW('$', 8, u32)`: how a classic tracepoint gets its program.
const PERF_EVENT_IOC_SET_BPF: u64 = 0x4004_2408;

/// `BPF_LOG_STATS`: the verifier says nothing but what it cost.
const LOG_STATS: u32 = 4;
const LOG_SIZE: u32 = 4096;

/// What became of one program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// The last refusal, in words.
    pub(crate) refusal: Option<String>,
    pub(crate) attached: bool,
    /// Instructions that the verifier went through; `None` when it did not say.
    pub(crate) cost: Option<u64>,
    /// What it said instead.
    pub(crate) silence: Option<String>,
}

/// Looks at the calls, and has the kernel refuse some programs.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) seen: BTreeMap<String, Program>,
    refused: &'static [&'static str],
    descriptors: BTreeMap<u32, String>,
    loading: Option<Loading>,
}

/// A load that is under way.
#[derive(Debug)]
struct Loading {
    name: String,
    /// Where the verifier's words go, and what was there before, if that is ours.
    log: Option<(u64, Vec<u8>)>,
    hindered: bool,
}

impl Programs {
    /// The kernel seems to refuse these.
    pub(crate) fn without(refused: &'static [&'static str]) -> Self {
        Self { refused, ..Self::default() }
    }

    fn load(&mut self, memory: &Memory, call: &Call) -> Result<Option<Errno>> {
        let [_, attributes, _] = call.arguments;
        let name = name(memory, attributes)?;
        if !name.starts_with(PREFIX) {
            return Ok(None);
        }
        let hindered = self.refused.contains(&name.as_str());
        let log = if hindered { None } else { ask_for_cost(memory, call, attributes)? };
        self.loading = Some(Loading { name, log, hindered });
        Ok(hindered.then_some(Errno::EINVAL))
    }

    fn loaded(&mut self, memory: &Memory, call: &Call, result: i64) -> Result<()> {
        let Some(Loading { name, log, hindered }) = self.loading.take() else { return Ok(()) };
        let program = self.seen.entry(name.clone()).or_default();
        if let Some((address, before)) = log {
            let mut said = vec![0; before.len()];
            memory.read(address, &mut said)?;
            memory.write(address, &before)?;
            memory.write(call.arguments[1] + LOG, &[0; 16])?;
            match cost(&said) {
                Some(cost) => program.cost = Some(cost),
                None => program.silence = Some(words(&said)),
            }
        }
        match u32::try_from(result) {
            Ok(descriptor) => drop(self.descriptors.insert(descriptor, name)),
            Err(_) if hindered => {}
            Err(_) => program.refusal = Some(format!("load: {}", errno(result))),
        }
        Ok(())
    }

    fn attached(&mut self, descriptor: u32, result: i64) {
        let Some(name) = self.descriptors.get(&descriptor) else { return };
        let program = self.seen.entry(name.clone()).or_default();
        if result < 0 {
            program.refusal = Some(format!("attach: {}", errno(result)));
        } else {
            program.attached = true;
        }
    }
}

impl Observer for Programs {
    fn wants(&self, number: i64) -> bool {
        [libc::SYS_bpf, libc::SYS_ioctl].contains(&number)
    }

    fn enters(&mut self, memory: &Memory, call: &Call) -> Result<Option<Errno>> {
        if call.number == libc::SYS_bpf && call.arguments[0] == PROG_LOAD {
            return self.load(memory, call);
        }
        Ok(None)
    }

    fn left(&mut self, memory: &Memory, call: &Call, result: i64) -> Result<()> {
        let [first, second, third] = call.arguments;
        match (call.number, first) {
            (libc::SYS_bpf, PROG_LOAD) => self.loaded(memory, call, result)?,
            (libc::SYS_bpf, RAW_TRACEPOINT_OPEN) => {
                self.attached(word(memory, second + RAW_TRACEPOINT_PROGRAM)?, result);
            }
            (libc::SYS_bpf, LINK_CREATE) => self.attached(word(memory, second)?, result),
            (libc::SYS_ioctl, _) if second == PERF_EVENT_IOC_SET_BPF => {
                self.attached(u32::try_from(third).unwrap_or(u32::MAX), result);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Has the verifier write below the caller's stack, unless it writes elsewhere already.
fn ask_for_cost(memory: &Memory, call: &Call, attributes: u64) -> Result<Option<(u64, Vec<u8>)>> {
    if word(memory, attributes + LOG)? != 0 {
        return Ok(None);
    }
    // A leaf function may use 128 bytes below the stack pointer.
    let address = (call.stack - 1024 - u64::from(LOG_SIZE)) & !15;
    let mut before = vec![0; LOG_SIZE as usize];
    // What the stack has not grown to yet is not there; then the kernel lets it grow.
    if memory.read(address, &mut before).is_err() {
        before.fill(0);
    }
    let words = [LOG_STATS.to_ne_bytes(), LOG_SIZE.to_ne_bytes()].concat();
    memory.write(attributes + LOG, &[&words[..], &address.to_ne_bytes()].concat())?;
    Ok(Some((address, before)))
}

/// The verifier says `processed 1234 insns (limit 1000000) …` in a line of its own.
fn cost(said: &[u8]) -> Option<u64> {
    words(said).lines().find_map(|line| line.strip_prefix("processed ")?.split(' ').next()?.parse().ok())
}

fn words(said: &[u8]) -> String {
    let end = said.iter().position(|byte| *byte == 0).unwrap_or(said.len());
    String::from_utf8_lossy(&said[..end]).into_owned()
}

fn name(memory: &Memory, attributes: u64) -> Result<String> {
    let mut bytes = [0; 16];
    memory.read(attributes + NAME, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

fn word(memory: &Memory, address: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

fn errno(result: i64) -> Errno {
    Errno::from_raw(i32::try_from(-result).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_the_number_of_its_own_line() {
        let said = b"stack depth 56+0 max 64\ninsns processed 491\nprocessed 490 insns (limit 1000000) peak_states 35\n\0rest";
        assert_eq!(cost(said), Some(490));
        assert_eq!(cost(b"\0"), None);
    }
}
