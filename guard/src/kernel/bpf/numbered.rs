//! The numbers of kernel types, in the form in which aya wants them.

use std::collections::BTreeMap;

use aya::{Btf, Endianness};
use aya_obj::btf::{BtfType, Float, Func, FuncLinkage};

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
/// Entries that are added cost less than parsed ones, but aya lets nobody make a typedef: what comes
/// before the last of these is parsed.
pub(super) fn numbered(names: &[(Named, u32)]) -> Result<Btf, BpfError> {
    let is_typedef = |named: &Named| matches!(named, Named::Typedef(_));
    let of_typedefs = names.iter().filter(|(named, _)| is_typedef(named)).map(|(_, number)| *number);
    let last = of_typedefs.max().unwrap_or(0);
    let (parsed, added): (Vec<_>, Vec<_>) = names.iter().partition(|(_, number)| *number <= last);
    let mut types = parsed_up_to(last, &parsed)?;
    let mut next = last + 1;
    for (number, named) in
        added.into_iter().map(|(named, number)| (number, named)).collect::<BTreeMap<_, _>>()
    {
        for _ in next..number {
            types.add_type(BtfType::Float(Float::new(0, 0)));
        }
        let name = types.add_string(named.name());
        types.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
        next = number + 1;
    }
    Ok(types)
}

/// `highest` types, of which these have a name.
fn parsed_up_to(highest: u32, names: &[(Named, u32)]) -> Result<Btf, BpfError> {
    const HEADER: u32 = 24;
    // A name's place among the strings, the kind, a size.
    const TYPE: usize = 12;
    const FLOAT: u32 = 16 << 24;
    let mut types = [0, FLOAT, 0].map(u32::to_ne_bytes).concat().repeat(highest as usize);
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
    use aya_obj::btf::BtfKind;

    use super::*;

    /// What is at each number: a name, and the kind as `info` says it.
    fn entries(types: &Btf, count: usize) -> Vec<(String, u32)> {
        let bytes = types.to_bytes();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let (types, strings) = (24, 24 + count * 12);
        assert_eq!(word(12) as usize, count * 12, "no more types than that");
        (0..count)
            .map(|index| {
                let at = types + index * 12;
                let name = bytes[strings + word(at) as usize..].split(|&byte| byte == 0).next().unwrap();
                (String::from_utf8(name.to_owned()).unwrap(), word(at + 4) >> 24 << 24)
            })
            .collect()
    }

    #[test]
    fn each_number_has_its_name_and_kind_and_no_other_has_a_name() {
        let all = [
            (Named::Function("c"), 9),
            (Named::Typedef("btf_trace_a"), 7),
            (Named::Function("b"), 1),
            (Named::Typedef("btf_trace_e"), 3),
            (Named::Function("d"), 12),
        ];
        let twice = [all[0], all[4], all[0], all[4]];
        for some in [&all[..], &all[..1], &all[1..2], &all[2..], &all[2..3], &twice, &[]] {
            let types = numbered(some).unwrap();
            let highest = some.iter().map(|(_, number)| *number).max().unwrap_or(0);
            for (number, found) in (1..).zip(entries(&types, highest as usize)) {
                let expected = some.iter().find(|(_, known)| *known == number);
                let expected = expected.map_or(("", 16 << 24), |(named, _)| (named.name(), named.kind()));
                assert_eq!((found.0.as_str(), found.1), expected, "{number} of {some:?}");
            }
            // What aya asks.
            for (named, number) in some {
                let kind = if matches!(named, Named::Typedef(_)) { BtfKind::Typedef } else { BtfKind::Func };
                assert_eq!(types.id_by_type_name_kind(named.name(), kind).unwrap(), *number);
            }
        }
        // Nothing has the number 0, which is void.
        assert_eq!(entries(&numbered(&[(Named::Function("a"), 0)]).unwrap(), 0), []);
    }
}
