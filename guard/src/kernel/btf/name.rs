//! Names that are looked for among a kernel's hundred thousand: nearly all of these are told from them by eight bytes.

use std::collections::BTreeSet;

/// What a name begins with.
const LENGTH: usize = size_of::<u64>();

/// The beginnings of some names.
#[derive(Debug)]
pub(super) struct Names(Vec<u64>);

impl Names {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let beginnings: BTreeSet<u64> = names
            .map(|name| {
                let mut bytes = [0; LENGTH];
                bytes.iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
                u64::from_le_bytes(bytes)
            })
            .collect();
        Self(beginnings.into_iter().collect())
    }

    /// Whether the string at `at` may be one of them. Never denies one that is.
    pub(super) fn may_have(&self, strings: &[u8], at: u32) -> bool {
        let Some(rest) = strings.get(at as usize..) else { return false };
        // What is that close to the end is compared in full.
        let Some(bytes) = rest.first_chunk::<LENGTH>() else { return true };
        let beginning = until_nul(u64::from_le_bytes(*bytes));
        self.0.contains(&beginning)
    }
}

/// The bytes before the first NUL, the lowest first.
const fn until_nul(word: u64) -> u64 {
    // Borrows may mark bytes above a NUL as one too, but none below.
    let nul = word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080;
    match nul.trailing_zeros() {
        u64::BITS => word,
        bit => word & ((1 << (bit - 7)) - 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_word_is_cut_off_at_its_first_nul(bytes in prop::array::uniform8(0..4_u8)) {
            let mut expected = bytes;
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(LENGTH);
            expected[end..].fill(0);
            prop_assert_eq!(until_nul(u64::from_le_bytes(bytes)).to_le_bytes(), expected);
        }

        #[test]
        fn no_name_that_is_looked_for_is_denied(
            names in prop::collection::vec("[a-c]{1,12}", 1..8),
            others in prop::collection::vec("[a-c]{0,12}", 0..8),
        ) {
            let wanted = Names::of(names.iter().map(String::as_str));
            let mut strings = vec![0];
            for name in others.iter().chain(&names) {
                let at = strings.len() as u32;
                strings.extend(name.bytes().chain([0]));
                let alike = |it: &String| it.bytes().take(LENGTH).eq(name.bytes().take(LENGTH));
                let denied = !wanted.may_have(&[strings.as_slice(), &[0; LENGTH]].concat(), at);
                prop_assert_eq!(denied, !names.iter().any(alike));
                prop_assert!(!names.contains(name) || wanted.may_have(&strings, at), "at the end");
            }
        }
    }
}
