//! The newest versions, in memory: all that are not saved, and as many that are as the bound allows.
//!
//! They come in revision order and leave from the front, so they lie in a row. Beside it is told where each main revision
//! begins, as a number of versions that ever came; none is left out, so no place has to be searched for:
//!
//! ```text
//! begins     5     6        8        first_main: 4, gone: 5
//! row        4.0   5.0 5.1  6.0      the place of 5.1 = begin of 5 + 1 - gone
//! ```

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
    /// How many versions had come before each main revision, modulo 2^32.
    begins: Row<u32>,
    /// The main revision that the first of those is about.
    first_main: i64,
    /// How many versions have left, modulo 2^32.
    gone: u32,
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
        let Revision { main, sub } = version.revision;
        if self.begins.is_empty() {
            self.first_main = main;
        }
        let next = self.first_main + self.begins.len() as i64;
        debug_assert!(main <= next, "no main revision is left out");
        if main == next {
            let came = self.gone.wrapping_add(self.row.len() as u32);
            self.begins.push_back(came.wrapping_sub(sub));
        }
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
        self.gone = self.gone.wrapping_add(1);
        self.bytes -= cost(&oldest);
        let is_first = |next: &Version| next.revision.main == oldest.revision.main;
        if !self.row.front().is_some_and(is_first) {
            self.begins.pop_front();
            self.first_main += 1;
        }
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
        let Ok(number) = usize::try_from(revision.main - self.first_main) else {
            return 0;
        };
        let begin = |number: usize| match self.begins.get(number) {
            Some(begin) => begin.wrapping_sub(self.gone) as i32,
            None => self.row.len() as i32,
        };
        // The first main revision may have begun before what is left of it.
        let place = i64::from(begin(number)) + i64::from(revision.sub);
        usize::try_from(place.min(i64::from(begin(number + 1)))).unwrap_or(0)
    }
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
