//! The numbers of kernel types, in the form in which aya wants them.

use std::collections::BTreeMap;

use aya::{Btf, Endianness};

use super::BpfError;

/// Numbers among the kernel's types, by name: of functions, and of tracepoints by the typedef of their prototype.
pub(super) type Numbers = BTreeMap<&'static str, u32>;

/// What aya looks up by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A kernel function, for fentry, fexit and iterators.
    Function(&'static str),
    /// The typedef of a tracepoint's prototype.
    Typedef(&'static str),
}

impl Named {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Function(name) | Self::Typedef(name) => name,
        }
    }

    /// As `info` of `struct btf_type` says it.
    const fn kind(self) -> u32 {
        match self {
            Self::Function(_) => 12 << 24,
            Self::Typedef(_) => 8 << 24,
        }
    }
}

/// A description of types in which these have these numbers, and nothing else
/// has a name.
///
/// aya wants to look a number up by itself, in types that it parsed. The
/// kernel's own take it 10 ms, and we know the numbers already. One description
/// serves a whole start: what it costs is one entry for each number up to the highest.
pub(super) fn numbered(names: &[(Named, u32)]) -> Result<Btf, BpfError> {
    const FWD: u32 = 7 << 24;
    const HEADER: u32 = 24;
    // A name's place among the strings, the kind, a size.
    const TYPE: usize = 12;
    let nameless = [0, FWD, 0].map(u32::to_ne_bytes).concat();
    let highest = names.iter().map(|(_, number)| *number).max().unwrap_or(0);
    let mut types = nameless.repeat(highest as usize);
    let mut strings = vec![0];
    for (named, number) in names {
        let name = strings.len() as u32;
        strings.extend(named.name().as_bytes());
        strings.push(0);
        // Types are numbered from 1; 0 is void.
        let entry = number.checked_sub(1).and_then(|index| {
            let start = index as usize * TYPE;
            types.get_mut(start..start + TYPE)
        });
        if let Some(entry) = entry {
            entry.copy_from_slice(&[name, named.kind(), 0].map(u32::to_ne_bytes).concat());
        }
    }
    let length = types.len() as u32;
    let mut blob = Vec::with_capacity(HEADER as usize + types.len() + strings.len());
    blob.extend(0xeb9f_u16.to_ne_bytes());
    blob.extend([1, 0]);
    let rest = [HEADER, 0, length, length, strings.len() as u32];
    blob.extend(rest.into_iter().flat_map(u32::to_ne_bytes));
    blob.extend(types);
    blob.extend(strings);
    let what = "the numbers of the kernel's types";
    Btf::parse(&blob, Endianness::default()).map_err(|error| BpfError::failed("prepare", what, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_name_and_kind_and_no_other_has_a_name() {
        let names =
            [(Named::Typedef("btf_trace_a"), 7), (Named::Function("b"), 1), (Named::Function("c"), 9)];
        let bytes = numbered(&names).unwrap().to_bytes();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let (types, strings) = (24, 24 + 9 * 12);
        for number in 1..=9_u32 {
            let at = types + (number as usize - 1) * 12;
            let name = &bytes[strings + word(at) as usize..];
            let name = name.split(|&byte| byte == 0).next().unwrap();
            let expected = names.iter().find(|(_, known)| *known == number);
            let (expected, kind) = expected.map_or(("", 7 << 24), |(named, _)| (named.name(), named.kind()));
            assert_eq!((name, word(at + 4)), (expected.as_bytes(), kind), "{number}");
        }
        assert!(numbered(&[]).is_ok());
    }
}
