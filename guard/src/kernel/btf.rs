//! Where members lie in the running kernel's structures, how many parameters
//! its functions take, and under which numbers it knows them.
//!
//! The kernel describes its own types in BTF (`/sys/kernel/btf/vmlinux`, since
//! 5.4 with `CONFIG_DEBUG_INFO_BTF`). The BPF programs read a handful of kernel
//! members and have no relocation of their own, so the guard looks the offsets
//! up and passes them in.
//!
//! The scanner is ours because aya keeps the members of BTF structures to
//! itself. It keeps one word per type so that a member's type can be found
//! again, and compares names of structures, typedefs and functions only.

use std::io;

use thiserror::Error;

pub use self::blob::Blob;
use self::name::Names;

mod blob;
mod name;

/// The running kernel's types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A member of a kernel structure, e.g. `sock_common`, `["skc_net", "net"]`.
///
/// Members of anonymous structures and unions are found under the structure
/// that contains them, as in C. A path descends by value and not through pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the structure.
    pub structure: &'static str,
    /// Member, member of that member, and so on.
    pub path: &'static [&'static str],
}

/// Why the kernel's types could not be read.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file is missing or may not be read.
    #[error("cannot read the kernel's types from {path}: {source}")]
    Read {
        /// The file.
        path: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It is not BTF of this machine's byte order.
    #[error("the kernel's types are not BTF: {what}")]
    Format {
        /// What was expected and not found.
        what: &'static str,
    },
    /// A kind of type that is newer than this program, so its length is unknown.
    #[error("the kernel's types contain kind {kind}, which this version of portguard does not know")]
    UnknownKind {
        /// The number of the kind.
        kind: u32,
    },
}

/// What was found of the types that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<const M: usize, const P: usize> {
    /// Offsets of the members in bytes; `None` for one that is missing or a bit field.
    pub offsets: [Option<u32>; M],
    /// Numbers of parameters of the functions.
    pub parameters: [Option<usize>; P],
    /// The functions' own numbers among the types.
    pub numbers: [Option<u32>; P],
}

impl<const M: usize, const P: usize> Found<M, P> {
    /// Nothing was found.
    pub const NOTHING: Self = Self { offsets: [None; M], parameters: [None; P], numbers: [None; P] };
}

/// Looks up `members`, and `functions` (the kernel's own, and typedefs of a
/// pointer to a function), in the running kernel.
///
/// # Errors
///
/// [`BtfError`] when the kernel has no BTF or it cannot be understood.
pub fn kernel_types<const M: usize, const P: usize>(
    members: &[Member; M],
    functions: &[&str; P],
) -> Result<Found<M, P>, BtfError> {
    find(&vmlinux()?, members, functions)
}

/// The running kernel's own description of its types, for [`Types::of`].
///
/// # Errors
///
/// [`BtfError::Read`] when the kernel has none or it may not be read.
pub fn vmlinux() -> Result<Blob, BtfError> {
    Blob::of(VMLINUX.as_ref()).map_err(|source| BtfError::Read { path: VMLINUX, source })
}

/// Looks up `members` and `functions` in `btf`.
///
/// # Errors
///
/// [`BtfError::Format`] and [`BtfError::UnknownKind`].
pub fn find<const M: usize, const P: usize>(
    btf: &[u8],
    members: &[Member; M],
    functions: &[&str; P],
) -> Result<Found<M, P>, BtfError> {
    Ok(Types::of(btf)?.find(members, functions))
}

/// Kinds of `include/uapi/linux/btf.h`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
/// Anonymous structures, and chains of typedefs and qualifiers, nest no deeper
/// than this in any kernel; it only ends the walk in a corrupt file.
const MAX_DEPTH: u32 = 32;

/// The sections of a BTF blob, with a way from a type's number to its place.
#[derive(Debug)]
pub struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Place of type `n + 1` in `types`.
    places: Vec<u32>,
}

/// The fixed part of a type.
struct Type {
    name: u32,
    kind: u32,
    members: usize,
    /// `kind_flag`: member offsets carry a bit field's size in the top byte.
    bit_fields: bool,
    /// Size or referred type.
    target: u32,
}

impl<'a> Types<'a> {
    /// Finds every type's place in `btf`.
    ///
    /// # Errors
    ///
    /// [`BtfError::Format`] and [`BtfError::UnknownKind`].
    pub fn of(btf: &'a [u8]) -> Result<Self, BtfError> {
        let format = |what| BtfError::Format { what };
        if btf.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(format("no magic number in this machine's byte order"));
        }
        let header = |at| word(btf, at).ok_or(format("the header is cut off"));
        let header_len = header(4)?;
        let section = |offset: u32, len: u32| {
            let start = usize::try_from(u64::from(header_len) + u64::from(offset)).ok()?;
            btf.get(start..start.checked_add(usize::try_from(len).ok()?)?)
        };
        let types = section(header(8)?, header(12)?).ok_or(format("the type section is cut off"))?;
        let strings = section(header(16)?, header(20)?).ok_or(format("the string section is cut off"))?;

        // Types of a kernel take 14 bytes or more on average.
        let mut places = Vec::with_capacity(types.len() / 14);
        let mut this = Self { types, strings, places: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            let found = this.at(at).ok_or(format("a type is cut off"))?;
            // BTF sections are limited to 2^32 bytes by their own header.
            places.push(at as u32);
            let count = found.members;
            at += 12
                + match found.kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                    kind::ENUM | kind::FUNC_PROTO => 8 * count,
                    kind::PTR
                    | kind::FWD
                    | kind::TYPEDEF
                    | kind::VOLATILE
                    | kind::CONST
                    | kind::RESTRICT
                    | kind::FUNC
                    | kind::FLOAT
                    | kind::TYPE_TAG => 0,
                    unknown => return Err(BtfError::UnknownKind { kind: unknown }),
                };
        }
        this.places = places;
        Ok(this)
    }

    /// Looks up `members`, and `functions` (the kernel's own, and typedefs of a pointer to a function).
    pub fn find<const M: usize, const P: usize>(
        &self,
        members: &[Member; M],
        functions: &[&str; P],
    ) -> Found<M, P> {
        self.find_both((members, functions), (&[], &[])).0
    }

    /// [`Types::find`] for two users at once: names lie scattered over megabytes, and to see each is what takes the time.
    pub fn find_both<const M: usize, const P: usize, const N: usize, const Q: usize>(
        &self,
        first: (&[Member; M], &[&str; P]),
        second: (&[Member; N], &[&str; Q]),
    ) -> (Found<M, P>, Found<N, Q>) {
        let structures = Names::of(first.0.iter().chain(second.0).map(|member| member.structure));
        let callables = Names::of(first.1.iter().chain(second.1).copied());
        let mut found = (Found::NOTHING, Found::NOTHING);
        for (number, (at, kind, name)) in (1..).zip(self.names()) {
            if kind == kind::STRUCT && structures.may_have(self.strings, name) {
                self.note_members(at, name, first.0, &mut found.0.offsets);
                self.note_members(at, name, second.0, &mut found.1.offsets);
            } else if matches!(kind, kind::TYPEDEF | kind::FUNC) && callables.may_have(self.strings, name) {
                self.note_functions(at, name, number, first.1, &mut found.0);
                self.note_functions(at, name, number, second.1, &mut found.1);
            }
        }
        found
    }

    /// Those of `members` that the structure at `at` has, which is called `name`.
    fn note_members(&self, at: usize, name: u32, members: &[Member], offsets: &mut [Option<u32>]) {
        for (slot, member) in offsets.iter_mut().zip(members) {
            if slot.is_none() && self.named(name, member.structure) {
                *slot = self.resolve(at, member.path, 0);
            }
        }
    }

    /// That one of `functions` that is type `number` at `at`, which is called `name`.
    fn note_functions<const M: usize, const P: usize>(
        &self,
        at: usize,
        name: u32,
        number: u32,
        functions: &[&str; P],
        found: &mut Found<M, P>,
    ) {
        let slots = found.parameters.iter_mut().zip(&mut found.numbers);
        for ((slot, its_number), function) in slots.zip(functions) {
            if slot.is_none() && self.named(name, function) {
                *slot = self.parameters(at);
                *its_number = slot.map(|_| number);
            }
        }
    }

    /// Size in bytes of the structure called `name`.
    pub fn size(&self, name: &str) -> Option<u32> {
        let (at, ..) =
            self.names().find(|&(_, kind, found)| kind == kind::STRUCT && self.named(found, name))?;
        Some(self.at(at)?.target)
    }

    /// Place, kind and name of every type, in the order of their numbers.
    fn names(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        self.places.iter().map(|&place| {
            let at = place as usize;
            // Every place was the beginning of a whole type when it was noted.
            self.at(at).map_or((at, 0, 0), |found| (at, found.kind, found.name))
        })
    }

    fn at(&self, at: usize) -> Option<Type> {
        let fixed = self.types.get(at..)?.first_chunk::<12>()?;
        let info = word(fixed, 4)?;
        Some(Type {
            name: word(fixed, 0)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            bit_fields: info >> 31 == 1,
            target: word(fixed, 8)?,
        })
    }

    /// The string at `name` is exactly `expected`.
    fn named(&self, name: u32, expected: &str) -> bool {
        let Some(rest) = self.strings.get(name as usize..) else {
            return false;
        };
        rest.strip_prefix(expected.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Place of type `id`.
    fn place(&self, id: u32) -> Option<usize> {
        Some(*self.places.get(usize::try_from(id).ok()?.checked_sub(1)?)? as usize)
    }

    /// Place of the structure or union that type `id` is, seen through typedefs
    /// and qualifiers.
    fn aggregate(&self, mut id: u32) -> Option<usize> {
        for _ in 0..MAX_DEPTH {
            let at = self.place(id)?;
            let found = self.at(at)?;
            match found.kind {
                kind::STRUCT | kind::UNION => return Some(at),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.target;
                }
                _ => return None,
            }
        }
        None
    }

    /// Number of parameters of the function at `at`, or of the one that the
    /// typedef there points to.
    fn parameters(&self, at: usize) -> Option<usize> {
        let found = self.at(at)?;
        if found.kind == kind::FUNC {
            let prototype = self.at(self.place(found.target)?)?;
            return (prototype.kind == kind::FUNC_PROTO).then_some(prototype.members);
        }
        let pointer = self.at(self.place(self.at(at)?.target)?)?;
        let function = self.at(self.place(pointer.target)?)?;
        (pointer.kind == kind::PTR && function.kind == kind::FUNC_PROTO).then_some(function.members)
    }

    /// Offset in bytes of `path` from the beginning of the aggregate at `at`.
    fn resolve(&self, at: usize, path: &[&str], depth: u32) -> Option<u32> {
        let (&first, rest) = path.split_first()?;
        let aggregate = self.at(at)?;
        if depth == MAX_DEPTH {
            return None;
        }
        (0..aggregate.members).find_map(|index| {
            let member = at + 12 + 12 * index;
            let name = word(self.types, member)?;
            let id = word(self.types, member + 4)?;
            let offset = byte_offset(word(self.types, member + 8)?, aggregate.bit_fields);
            if self.named(name, first) {
                return match rest {
                    [] => offset,
                    _ => Some(offset? + self.resolve(self.aggregate(id)?, rest, depth + 1)?),
                };
            }
            // The empty string is at 0: an anonymous structure or union.
            (name == 0).then(|| Some(offset? + self.resolve(self.aggregate(id)?, path, depth + 1)?))?
        })
    }
}

/// A member's offset in bytes; a bit field has none.
fn byte_offset(raw: u32, bit_fields: bool) -> Option<u32> {
    let (bits, width) = if bit_fields { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
    (width == 0 && bits % 8 == 0).then_some(bits / 8)
}

/// The 32-bit word at byte `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a blob: types are pushed as raw words, names are interned.
    #[derive(Default)]
    struct Blob {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Blob {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn push(&mut self, name: &str, info: u32, target: u32, extra: &[u32]) {
            let name = self.name(name);
            for word in [name, info, target].iter().chain(extra) {
                self.types.extend(word.to_ne_bytes());
            }
        }

        fn structure(&mut self, name: &str, kind: u32, members: &[(&str, u32, u32)], flag: bool) {
            let extra: Vec<u32> =
                members.iter().flat_map(|&(name, id, offset)| [self.name(name), id, offset]).collect();
            self.push(name, u32::from(flag) << 31 | kind << 24 | members.len() as u32, 64, &extra);
        }

        fn build(&self) -> Vec<u8> {
            let mut blob = MAGIC.to_ne_bytes().to_vec();
            blob.extend([1, 0]);
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [24, 0, types, types, strings] {
                blob.extend(word.to_ne_bytes());
            }
            blob.extend(&self.types);
            blob.extend(&self.strings);
            blob
        }
    }

    fn sample() -> Blob {
        let mut blob = Blob::new();
        blob.push("int", kind::INT << 24, 4, &[0]); // 1
        blob.structure("inner", kind::STRUCT, &[("deep", 1, 32)], false); // 2
        blob.push("inner_t", kind::TYPEDEF << 24, 2, &[]); // 3
        blob.push("", kind::CONST << 24, 3, &[]); // 4
        blob.structure("", kind::UNION, &[("in_union", 1, 0)], false); // 5
        blob.structure("outer", kind::STRUCT, &[("first", 1, 0), ("", 5, 64), ("nested", 4, 128)], false); // 6
        blob.structure("flags", kind::STRUCT, &[("one_bit", 1, 1 << 24 | 8), ("whole", 1, 64)], true); // 7
        blob
    }

    fn offset(blob: &[u8], structure: &'static str, path: &'static [&'static str]) -> Option<u32> {
        find(blob, &[Member { structure, path }], &[]).unwrap().offsets[0]
    }

    #[test]
    fn a_function_type_tells_its_parameters() {
        let mut blob = sample();
        blob.push("", kind::FUNC_PROTO << 24 | 3, 0, &[0; 6]); // 8
        blob.push("", kind::PTR << 24, 8, &[]); // 9
        blob.push("callback", kind::TYPEDEF << 24, 9, &[]); // 10
        blob.push("callback_t", kind::TYPEDEF << 24, 10, &[]); // 11
        let found = find(&blob.build(), &[], &["callback", "inner_t", "callback_t", "call"]).unwrap();
        assert_eq!(found.parameters, [Some(3), None, None, None]);
    }

    #[test]
    fn each_of_two_users_gets_what_it_asked_for() {
        let mut blob = sample();
        blob.push("", kind::FUNC_PROTO << 24 | 2, 0, &[0; 4]); // 8
        blob.push("callee", kind::FUNC << 24, 8, &[]); // 9
        let blob = blob.build();
        let types = Types::of(&blob).unwrap();
        let member = |structure, path| Member { structure, path };
        let first = [member("outer", &["in_union"]), member("flags", &["whole"]), member("outer", &["nope"])];
        let second = [member("flags", &["whole"]), member("outer", &["nested", "deep"])];
        let (of_first, of_second) = types.find_both((&first, &["inner_t"]), (&second, &["nobody", "callee"]));
        assert_eq!(of_first.offsets, [Some(8), Some(8), None]);
        assert_eq!((of_first.parameters, of_first.numbers), ([None], [None]), "no function");
        assert_eq!(of_second.offsets, [Some(8), Some(20)]);
        assert_eq!((of_second.parameters, of_second.numbers), ([None, Some(2)], [None, Some(9)]));
        assert_eq!(
            (of_first, of_second),
            (types.find(&first, &["inner_t"]), types.find(&second, &["nobody", "callee"]))
        );
    }

    #[test]
    fn members_are_found_through_typedefs_and_anonymous_unions() {
        let blob = sample().build();
        assert_eq!(offset(&blob, "outer", &["first"]), Some(0));
        assert_eq!(offset(&blob, "outer", &["in_union"]), Some(8));
        assert_eq!(offset(&blob, "outer", &["nested", "deep"]), Some(20));
        assert_eq!(offset(&blob, "outer", &["nope"]), None);
        assert_eq!(offset(&blob, "oute", &["first"]), None);
        assert_eq!(offset(&blob, "outer", &["first", "deep"]), None);
    }

    #[test]
    fn a_bit_field_has_no_byte_offset() {
        let blob = sample().build();
        assert_eq!(offset(&blob, "flags", &["one_bit"]), None);
        assert_eq!(offset(&blob, "flags", &["whole"]), Some(8));
    }

    #[test]
    fn an_unknown_kind_is_an_error_and_not_garbage() {
        let mut blob = sample();
        blob.push("future", 31 << 24, 0, &[]);
        let wanted = [Member { structure: "outer", path: &["first"] }];
        assert!(matches!(find(&blob.build(), &wanted, &[]), Err(BtfError::UnknownKind { kind: 31 })));
    }

    #[test]
    fn a_blob_cut_off_anywhere_is_refused_without_a_panic() {
        let blob = sample().build();
        let wanted = [Member { structure: "outer", path: &["nested", "deep"] }];
        for len in 0..blob.len() {
            assert!(find(&blob[..len], &wanted, &[]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_structure_that_contains_itself_ends_the_walk() {
        let mut blob = Blob::new();
        blob.structure("loop", kind::STRUCT, &[("", 1, 0)], false);
        assert_eq!(offset(&blob.build(), "loop", &["absent"]), None);
    }

    #[test]
    fn the_running_kernel_tells_where_its_members_are() {
        if !std::path::Path::new(VMLINUX).exists() {
            eprintln!("skipped: this kernel has no {VMLINUX}");
            return;
        }
        let members = [
            Member { structure: "task_struct", path: &["pid"] },
            Member { structure: "task_struct", path: &["comm"] },
            Member { structure: "task_struct", path: &["portguard"] },
        ];
        let functions = ["btf_trace_sched_process_exec", "inet_put_port", "portguard"];
        let found = kernel_types(&members, &functions).unwrap();
        let [pid, comm, absent] = found.offsets;
        assert!(pid.is_some() && comm.is_some() && pid != comm);
        assert_eq!(absent, None);
        // (data, task, old_pid, bprm) and (sk)
        assert_eq!(found.parameters, [Some(4), Some(1), None]);
        assert!(found.numbers[1].is_some() && found.numbers[2].is_none());
    }
}
