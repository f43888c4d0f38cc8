//! A key as the index keeps it.
//!
//! The index is searched at every read and write, and holds every key: one that is short lies in the map's own nodes,
//! where a comparison finds it without following a pointer, and takes no allocation of its own.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Longer keys, in bytes, are allocated. Up to here a key takes as much as a pointer to one and its length, and a word.
const SHORT: usize = 22;

/// A key, ordered by its bytes.
#[derive(Clone)]
pub struct Key(Repr);

#[derive(Clone)]
enum Repr {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Key {
    /// A copy for those who share keys.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

/// A key in two parts, as the index has it.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    prefix: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Name<'a> {
    /// The one part, and the other behind it.
    pub fn new(prefix: &'a [u8], rest: &'a [u8]) -> Name<'a> {
        Name { prefix, rest }
    }

    /// A key in one part.
    pub fn whole(key: &'a [u8]) -> Name<'a> {
        Name::new(key, &[])
    }

    /// A copy for those who share keys.
    pub fn to_bytes(self) -> Bytes {
        [self.prefix, self.rest].concat().into()
    }

    /// A copy as the index keeps it.
    pub fn to_key(self) -> Key {
        Key::from(&[self.prefix, self.rest].concat()[..])
    }

    /// Whether it is this key.
    pub fn is(self, key: &[u8]) -> bool {
        key.strip_prefix(self.prefix) == Some(self.rest)
    }
}

impl Default for Key {
    fn default() -> Key {
        Key::from(&[][..])
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        let mut short = [0; SHORT];
        match short.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Key(Repr::Short(bytes.len() as u8, short))
            }
            None => Key(Repr::Long(bytes.into())),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Short(length, bytes) => &bytes[..usize::from(*length)],
            Repr::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_bytes())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self[..].cmp(&other[..])
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
        assert!(keys.iter().all(|key| key.clone() == *key));
    }

    #[test]
    fn a_key_takes_three_words() {
        assert_eq!(size_of::<Key>(), 3 * size_of::<usize>());
    }
}
