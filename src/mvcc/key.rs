//! A key as the index keeps it.
//!
//! The index is searched at every read and write, and holds every key: one that is short lies in the map's own nodes,
//! where a comparison finds it without following a pointer, and takes no allocation of its own.

use std::borrow::Borrow;
use std::ops::Deref;

use bytes::Bytes;
use smallvec::SmallVec;

/// Longer keys, in bytes, are allocated. Up to here a key takes as much as a pointer to one that is shared.
const SHORT: usize = 24;

/// A key, ordered by its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(SmallVec<[u8; SHORT]>);

impl Key {
    /// A copy for those who share keys.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        Key(SmallVec::from_slice(bytes))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_their_bytes() {
        let long = [7; 3 * SHORT];
        let texts: Vec<&[u8]> = vec![
            b"",
            b"\0",
            b"a",
            b"a\0",
            b"ab",
            &long[..SHORT],
            &long[..SHORT + 1],
            &long,
            b"\xff",
        ];
        let mut sorted = texts.clone();
        sorted.sort_unstable();
        let mut keys: Vec<Key> = texts.into_iter().map(Key::from).collect();
        keys.sort_unstable();
        assert!(keys.iter().map(Deref::deref).eq(sorted));
    }

    #[test]
    fn a_key_takes_no_more_than_a_pointer_to_shared_bytes() {
        assert_eq!(size_of::<Key>(), size_of::<Bytes>());
    }
}
