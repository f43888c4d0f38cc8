//! The newest versions, in memory: all that are not saved, and as many that are as the bound allows.
//!
//! They come in revision order and leave from the front, so they lie in a row. No main revision is ever left out, so a
//! version stands at least as far from the front as its revision is from the first one's, and mostly just there: it is
//! looked for from that place on.

use std::collections::VecDeque;

use super::Revision;
use super::block::Version;

/// The row. What was reclaimed leaves a gap, so that places stay what they are.
#[derive(Default)]
pub struct Recent {
    row: VecDeque<(Revision, Option<Version>)>,
    /// Of all versions in it.
    bytes: usize,
}

impl Recent {
    /// Bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the newest.
    pub fn push(&mut self, version: Version) {
        debug_assert!(
            self.row.back().is_none_or(|(last, _)| *last < version.revision),
            "versions come in order"
        );
        self.bytes += version.size();
        self.row.push_back((version.revision, Some(version)));
    }

    /// The version at a revision, if it is in memory.
    pub fn get(&self, revision: Revision) -> Option<&Version> {
        let (found, version) = self.row.get(self.place(revision))?;
        version.as_ref().filter(|_| *found == revision)
    }

    /// The versions beyond `after`, up to `until`.
    pub fn range(&self, after: Revision, until: Revision) -> impl Iterator<Item = &Version> {
        let beyond = Revision {
            sub: after.sub.saturating_add(1),
            ..after
        };
        self.row
            .range(self.place(beyond)..)
            .take_while(move |(revision, _)| *revision <= until)
            .filter_map(|(_, version)| version.as_ref())
    }

    /// Removes the oldest, if it is not beyond `until`; tells its revision.
    pub fn pop(&mut self, until: Revision) -> Option<Revision> {
        self.row.front().filter(|(oldest, _)| *oldest <= until)?;
        let (revision, version) = self.row.pop_front()?;
        self.bytes -= version.map_or(0, |version| version.size());
        if self.row.len() < self.row.capacity() / 4 {
            // What a burst took goes back, and half stays.
            self.row.shrink_to(self.row.capacity() / 2);
        }
        Some(revision)
    }

    /// Removes a version, wherever it stands.
    pub fn forget(&mut self, revision: Revision) {
        let place = self.place(revision);
        if let Some((found, version)) = self.row.get_mut(place)
            && *found == revision
        {
            self.bytes -= version.take().map_or(0, |version| version.size());
        }
    }

    /// Where a revision stands, or would.
    fn place(&self, revision: Revision) -> usize {
        let Some((first, _)) = self.row.front() else {
            return 0;
        };
        let least = usize::try_from(revision.main - first.main).unwrap_or(0);
        let least = least.min(self.row.len());
        match self.row.get(least) {
            Some((found, _)) if *found < revision => {
                let beyond = self.row.range(least..);
                // Only commands with several changes make a version stand further behind.
                least + partition_point(beyond.len(), |at| self.row[least + at].0 < revision)
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
    use crate::pb::mvccpb::KeyValue;

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
            model = model.split_off(&recent.row[0].0);
            for probe in &probes {
                assert_eq!(recent.get(*probe), model.get(probe), "{probe:?}");
                let until = super::tests::revision(probe.main + 9, 1);
                let beyond = recent.range(*probe, until).map(|version| version.revision);
                let expected = model.keys().copied().filter(|key| key > probe && *key <= until);
                assert!(beyond.eq(expected), "beyond {probe:?}");
            }
            let bytes: usize = model.values().map(Version::size).sum();
            assert_eq!(recent.bytes(), bytes);
        }
        assert_eq!(recent.pop(revision(0, 0)), None);
    }
}
