//! The newest versions, in memory: all that are not saved, and as many that are as the bound allows.
//!
//! They come in revision order and leave from the front, so they lie in a row. No main revision is ever left out, so a
//! version stands at least as far from the front as its revision is from the first one's, and mostly just there: it is
//! looked for from that place on.

use super::Revision;
use super::block::Version;
use crate::pb::mvccpb::KeyValue;
use crate::storage::Row;

/// What a version takes beside its key and value: its place in the row, and, about, what the log's entry that both lie
/// in takes for itself.
const BESIDE: usize = size_of::<Version>() + 100;

/// The row. What was reclaimed leaves a gap, so that places stay what they are: a version without a pair.
#[derive(Default)]
pub struct Recent {
    row: Row<Version>,
    /// Of all versions in it.
    bytes: usize,
}

/// Bytes that a version takes in memory.
fn cost(version: &Version) -> usize {
    BESIDE + version.kv.key.len() + version.kv.value.len()
}

/// Every pair was modified at a revision.
fn is_gap(version: &Version) -> bool {
    version.kv.mod_revision == 0
}

impl Recent {
    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the newest.
    pub fn push(&mut self, version: Version) {
        debug_assert!(
            self.row
                .back()
                .is_none_or(|last| last.revision < version.revision),
            "versions come in order"
        );
        self.bytes += cost(&version);
        self.row.push_back(version);
    }

    /// The version at a revision, if it is in memory.
    pub fn get(&self, revision: Revision) -> Option<&Version> {
        let version = self.row.get(self.place(revision))?;
        (version.revision == revision && !is_gap(version)).then_some(version)
    }

    /// The versions beyond `after`, up to `until`.
    pub fn range(&self, after: Revision, until: Revision) -> impl Iterator<Item = &Version> {
        let beyond = Revision {
            sub: after.sub.saturating_add(1),
            ..after
        };
        self.row
            .range(self.place(beyond)..)
            .take_while(move |version| version.revision <= until)
            .filter(|version| !is_gap(version))
    }

    /// Removes the oldest, if it is not beyond `until`; tells its revision.
    pub fn pop(&mut self, until: Revision) -> Option<Revision> {
        self.row.front().filter(|oldest| oldest.revision <= until)?;
        let oldest = self.row.pop_front()?;
        self.bytes -= cost(&oldest);
        Some(oldest.revision)
    }

    /// Removes a version, wherever it stands.
    pub fn forget(&mut self, revision: Revision) {
        let place = self.place(revision);
        if let Some(version) = self.row.get_mut(place)
            && version.revision == revision
        {
            self.bytes -= cost(version);
            version.kv = KeyValue::default();
            self.bytes += cost(version);
        }
    }

    /// Where a revision stands, or would.
    fn place(&self, revision: Revision) -> usize {
        let Some(first) = self.row.front() else {
            return 0;
        };
        let least = usize::try_from(revision.main - first.revision.main).unwrap_or(0);
        let least = least.min(self.row.len());
        match self.row.get(least) {
            Some(found) if found.revision < revision => {
                let beyond = self.row.range(least..);
                // Only commands with several changes make a version stand further behind.
                least + partition_point(beyond.len(), |at| self.row[least + at].revision < revision)
            }
            _ => least,
        }
    }
}

/// How many of the first `count` numbers fulfil a condition that holds up to some number.
fn partition_point(count: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        match holds(middle) {
            true => from = middle + 1,
            false => to = middle,
        }
    }
    from
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn revision(main: i64, sub: u32) -> Revision {
        Revision { main, sub }
    }

    fn version(revision: Revision) -> Version {
        Version {
            revision,
            tombstone: false,
            kv: KeyValue {
                mod_revision: revision.main,
                ..KeyValue::default()
            },
        }
    }

    /// The same as an ordered map, for commands of one to three changes.
    #[test]
    fn versions_are_found_by_revision_as_in_a_map() {
        let (mut recent, mut model) = (Recent::default(), BTreeMap::new());
        let changes = |main: i64| 1 + (main * 7 % 5 % 3) as u32;
        let all = (10..60).flat_map(|main| (0..changes(main)).map(move |sub| revision(main, sub)));
        let probes: Vec<Revision> = (0..70)
            .flat_map(|main| (0..4).map(move |sub| revision(main, sub)))
            .collect();
        for (number, revision) in all.enumerate() {
            recent.push(version(revision));
            model.insert(revision, version(revision));
            match number % 11 {
                3 => {
                    let gone = probes[number * 13 % probes.len()];
                    recent.forget(gone);
                    model.remove(&gone);
                }
                7 => drop(recent.pop(revision)),
                _ => {}
            }
            model = model.split_off(&recent.row[0].revision);
            for probe in &probes {
                assert_eq!(recent.get(*probe), model.get(probe), "{probe:?}");
                let until = super::tests::revision(probe.main + 9, 1);
                let beyond = recent.range(*probe, until).map(|version| version.revision);
                let expected = model.keys().copied().filter(|key| key > probe && *key <= until);
                assert!(beyond.eq(expected), "beyond {probe:?}");
            }
            let bytes: usize = model.values().map(cost).sum();
            let gaps = recent.row.len() - model.len();
            assert_eq!(recent.bytes(), bytes + gaps * BESIDE);
        }
        assert_eq!(recent.pop(revision(0, 0)), None);
    }
}
