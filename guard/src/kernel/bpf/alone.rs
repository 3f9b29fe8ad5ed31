//! Loads one program that needs no more than a map and the read-only globals, without all that aya's loader does for any
//! object: that takes longer than the rest. It is what somebody waits for who asks for an owner.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::MapData;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::call::{self, ProgLoad, TRACE_ITER, TYPE_TRACING};

/// The iterator program `name` of `object`, to be put where the kernel's types have the number `target`, and its map
/// `map`. `globals` are what its read-only global `symbol` shall hold.
///
/// # Errors
///
/// When the object is not as expected, or the kernel refuses something. It gives no reasons: aya does.
pub(super) fn iterator(
    object: &[u8],
    name: &str,
    target: u32,
    map: &str,
    (symbol, globals): (&str, &[u8]),
) -> io::Result<(OwnedFd, MapData)> {
    let missing = |what: &str| io::Error::other(format!("the object has no {what}"));
    let mut object = Object::parse(object).map_err(io::Error::other)?;
    let key = object.programs.get(name).ok_or_else(|| missing(name))?.function_key();
    // What is wanted by others is neither made nor pointed to.
    object.functions.retain(|&function, _| function == key);
    object.patch_map_data([(symbol, (globals, true))].into()).map_err(io::Error::other)?;

    // Were there another such section and the program used it, it could not be relocated.
    let read_only = object.maps.remove(".rodata").ok_or_else(|| missing("read-only globals"))?;
    let wanted = object.maps.remove(map).ok_or_else(|| missing(map))?;
    let constants = MapData::create(read_only.clone(), "globals", None).map_err(io::Error::other)?;
    let data = MapData::create(wanted.clone(), map, None).map_err(io::Error::other)?;
    let number = |map: &MapData| map.fd().as_fd().as_raw_fd();
    if read_only.data().len() != read_only.value_size() as usize {
        return Err(io::Error::other("the read-only globals are not what their map holds"));
    }
    // SAFETY: the map was made with values of this size.
    unsafe { call::write_for_good(number(&constants), read_only.data()) }?;
    let maps = [("", number(&constants), &read_only), (map, number(&data), &wanted)];
    object.relocate_maps(maps.into_iter(), &[].into()).map_err(io::Error::other)?;

    let function = object.functions.get(&key).ok_or_else(|| missing(name))?;
    if function.instructions.iter().any(calls_another) {
        return Err(io::Error::other("the program calls functions of the object"));
    }
    let program = load(name, &object.license, &function.instructions, target)?;
    Ok((program, data))
}

/// Whether it refers to a function of the object, which was left out.
fn calls_another(instruction: &bpf_insn) -> bool {
    /// `BPF_JMP | BPF_CALL`
    const CALL: u8 = 0x85;
    /// `BPF_PSEUDO_CALL`
    const OF_THE_OBJECT: u8 = 1;
    instruction.code == CALL && instruction.src_reg() == OF_THE_OBJECT
}

fn load(name: &str, license: &CString, instructions: &[bpf_insn], target: u32) -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    // The last one stays NUL.
    prog_name[..15].iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
    let attributes = ProgLoad {
        prog_type: TYPE_TRACING,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        expected_attach_type: TRACE_ITER,
        attach_btf_id: target,
        ..ProgLoad::default()
    };
    // SAFETY: the instructions and the license outlive the call.
    Ok(unsafe { call::load_program(&attributes) }?)
}
