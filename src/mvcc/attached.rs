//! Which keys are attached to which lease.
//!
//! Nothing new is known here: each key's current version names its lease. But a lease must find its keys without a
//! search through all of them, so this index is kept beside that of the versions, changed with it, and made from it
//! when a store is opened. It is never saved: two truths could differ.
//!
//! One ordered set of (lease, key) serves all leases: a lease costs nothing here, an attached key one place in the
//! set, and a lease's keys come in key order, which is the order in which they go when it ends.

use std::collections::BTreeSet;

use super::index::Index;
use super::key::Key;

/// The index.
#[derive(Default)]
pub struct Attached {
    keys: BTreeSet<(i64, Key)>,
}

impl Attached {
    /// Of all keys that exist.
    pub fn of(index: &Index) -> Attached {
        let current = index
            .iter()
            .filter_map(|(name, history)| Some((history.at(i64::MAX)?.lease, name)))
            .filter(|(lease, _)| *lease != 0);
        Attached {
            keys: current.map(|(lease, name)| (lease, name.to_key())).collect(),
        }
    }

    /// A key goes from one lease to another; 0 is none.
    pub fn moved(&mut self, key: &Key, from: i64, to: i64) {
        if from != 0 {
            self.keys.remove(&(from, key.clone()));
        }
        if to != 0 {
            self.keys.insert((to, key.clone()));
        }
    }

    /// A lease's keys, in order.
    pub fn keys(&self, lease: i64) -> impl Iterator<Item = &Key> {
        self.keys
            .range((lease, Key::default())..)
            .take_while(move |(other, _)| *other == lease)
            .map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_finds_its_keys_in_order_and_no_others() {
        let mut attached = Attached::default();
        let key = |name: &'static str| Key::from(name.as_bytes());
        for (name, lease) in [("b", 7), ("a", 7), ("c", 8), ("d", -1), ("e", i64::MAX)] {
            attached.moved(&key(name), 0, lease);
        }
        let keys = |attached: &Attached, lease| attached.keys(lease).cloned().collect::<Vec<_>>();
        assert_eq!(keys(&attached, 7), [key("a"), key("b")]);
        assert_eq!(keys(&attached, -1), [key("d")]);
        assert_eq!(keys(&attached, i64::MAX), [key("e")]);
        assert_eq!(keys(&attached, 9), Vec::<Key>::new());
        attached.moved(&key("a"), 7, 8);
        attached.moved(&key("c"), 8, 0);
        assert_eq!(keys(&attached, 7), [key("b")]);
        assert_eq!(keys(&attached, 8), [key("a")]);
    }
}
