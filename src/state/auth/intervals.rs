//! Sets of keys as intervals: what a user may touch is the union of what all its roles allow.
//!
//! ```text
//! granted   [a, c)   [c, f)   [x, ∞)        merged   [a, f)   [x, ∞)
//! asked     [b, d) lies in [a, f): allowed   [e, g) does not: refused, though part of it is
//! ```

use bytes::{BufMut, Bytes, BytesMut};

/// One interval: from a key up to, not including, another; without an end, all keys from there on.
pub type Interval = (Bytes, Option<Bytes>);

/// By etcd's conventions for `key` and `range_end`. One that is inverted holds nothing, and counts as its first key.
pub fn interval(key: &Bytes, range_end: &Bytes) -> Interval {
    match &range_end[..] {
        [0] => (key.clone(), None),
        end if end > &key[..] => (key.clone(), Some(range_end.clone())),
        _ => (key.clone(), Some(successor(key))),
    }
}

/// The smallest key after `key`.
fn successor(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Disjoint intervals in order; those that overlapped or touched are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intervals(Vec<Interval>);

impl Intervals {
    /// The union of these.
    pub fn union(mut all: Vec<Interval>) -> Self {
        all.sort_unstable();
        let mut merged: Vec<Interval> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    *last = later(last.take(), end);
                }
                _ => merged.push((start, end)),
            }
        }
        Intervals(merged)
    }

    /// Whether all of an interval is in the set: it must lie in one of the merged ones.
    pub fn covers(&self, (start, end): &Interval) -> bool {
        let after = self.0.partition_point(|(from, _)| from <= start);
        let Some((_, until)) = after.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        match (until, end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(until), Some(end)) => end <= until,
        }
    }
}

fn later(one: Option<Bytes>, other: Option<Bytes>) -> Option<Bytes> {
    one.zip(other).map(|(one, other)| one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &'static str, range_end: &'static str) -> Interval {
        interval(
            &Bytes::from_static(key.as_bytes()),
            &Bytes::from_static(range_end.as_bytes()),
        )
    }

    #[test]
    fn roles_add_up() {
        let set = Intervals::union(vec![of("c", "f"), of("a", "c"), of("x", "\0")]);
        assert_eq!(set, Intervals(vec![of("a", "f"), of("x", "\0")]));
        for (asked, allowed) in [
            (of("b", "d"), true),
            (of("a", "f"), true),
            (of("e", ""), true),
            (of("e", "g"), false),
            (of("f", ""), false),
            (of("A", "b"), false),
            (of("y", ""), true),
            (of("y", "\0"), true),
            (of("a", "\0"), false),
        ] {
            assert_eq!(set.covers(&asked), allowed, "{asked:?}");
        }
    }

    #[test]
    fn neighbouring_keys_are_not_one_interval() {
        let set = Intervals::union(vec![of("a", ""), of("b", "")]);
        assert!(set.covers(&of("a", "")) && set.covers(&of("b", "")));
        assert!(!set.covers(&of("a", "c")), "there are keys between a and b");
        assert!(Intervals::union(vec![of("a", ""), of("a\0", "b")]).covers(&of("a", "b")));
    }

    #[test]
    fn an_open_end_swallows_what_follows() {
        let set = Intervals::union(vec![of("a", "\0"), of("b", "c"), of("d", "")]);
        assert_eq!(set, Intervals(vec![of("a", "\0")]));
        assert!(!Intervals::default().covers(&of("a", "")));
    }

    #[test]
    fn an_inverted_range_counts_as_its_first_key() {
        assert_eq!(of("b", "a"), of("b", ""));
    }
}
