//! A key's past, as the index keeps it: everything about its versions but the values.
//!
//! ```text
//! revision      2      4      5      7
//! a             put    put    del    put
//!               └─ generation 1 ┘    └─ generation 2
//! at(4) = the put at 4      at(5), at(6) = nothing      at(7) = the put at 7: create revision 7, version 1
//! compact(4): the put at 4 stays, as 4 itself remains readable
//! compact(5): nothing of generation 1 is visible at or after 5, so its puts go
//! ```
//!
//! The delete at 5 outlives compact(5), though no read can see it: a watch may begin at the compacted revision, and
//! must be told of all that happened there. (etcd forgets such deletes.) It goes with the next compaction, and is no
//! part of the checksum.

use smallvec::SmallVec;

use super::Revision;
use super::block::Version;
use crate::pb::mvccpb::KeyValue;

/// A version without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// When it came to be; `main` is the pair's mod revision.
    pub revision: Revision,
    /// Main revision of the put that began its generation; 0 for a tombstone.
    pub create_revision: i64,
    /// Puts in its generation up to it; 0 for a tombstone.
    pub version: i64,
    /// The lease that it is attached to, 0 for none.
    pub lease: i64,
}

impl Meta {
    /// Of a stored version.
    pub fn of(version: &Version) -> Meta {
        Meta {
            revision: version.revision,
            create_revision: version.kv.create_revision,
            version: version.kv.version,
            lease: version.kv.lease,
        }
    }

    /// Of a deletion.
    pub fn tombstone(revision: Revision) -> Meta {
        Meta {
            revision,
            create_revision: 0,
            version: 0,
            lease: 0,
        }
    }

    /// Whether the key was deleted by it.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// The pair, but for its value.
    pub fn without_value(&self, key: &bytes::Bytes) -> KeyValue {
        KeyValue {
            key: key.clone(),
            create_revision: self.create_revision,
            mod_revision: self.revision.main,
            version: self.version,
            value: bytes::Bytes::new(),
            lease: self.lease,
        }
    }
}

/// The versions of one key, in revision order.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Most keys are written once: their version lies in place.
    versions: SmallVec<[Meta; 1]>,
}

impl History {
    /// Adds the newest version.
    pub fn push(&mut self, meta: Meta) {
        debug_assert!(
            self.versions
                .last()
                .is_none_or(|last| last.revision < meta.revision),
            "versions come in order"
        );
        self.versions.push(meta);
    }

    /// The version visible at a main revision; nothing if the key did not exist then.
    pub fn at(&self, main: i64) -> Option<&Meta> {
        let newer = match self.versions.last() {
            Some(last) if last.revision.main <= main => self.versions.len(),
            _ => self.versions.partition_point(|meta| meta.revision.main <= main),
        };
        self.versions[..newer].last().filter(|meta| !meta.is_tombstone())
    }

    /// The versions that can be read once `compacted` is the compacted revision, newest version at or before it included.
    pub fn kept(&self, compacted: i64) -> &[Meta] {
        let newer = self
            .versions
            .partition_point(|meta| meta.revision.main <= compacted);
        let visible = newer
            .checked_sub(1)
            .filter(|at| !self.versions[*at].is_tombstone());
        &self.versions[visible.unwrap_or(newer)..]
    }

    /// Forgets what can neither be read nor watched any more, and tells what that was.
    pub fn compact(&mut self, compacted: i64, forgotten: &mut Vec<Revision>) {
        let readable = self.versions.len() - self.kept(compacted).len();
        let watchable = self
            .versions
            .partition_point(|meta| meta.revision.main < compacted);
        let gone = readable.min(watchable);
        if gone > 0 {
            forgotten.extend(self.versions.drain(..gone).map(|meta| meta.revision));
            self.versions.shrink_to_fit();
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(main: i64, create_revision: i64, version: i64) -> Meta {
        Meta {
            revision: Revision { main, sub: 0 },
            create_revision,
            version,
            lease: 0,
        }
    }

    /// The example of the module's head.
    fn example() -> History {
        let mut history = History::default();
        for version in [meta(2, 2, 1), meta(4, 2, 2), meta(5, 0, 0), meta(7, 7, 1)] {
            history.push(version);
        }
        history
    }

    #[test]
    fn a_key_is_visible_from_its_put_to_its_delete() {
        let at = |main| example().at(main).map(|meta| (meta.revision.main, meta.version));
        assert_eq!(
            [at(1), at(2), at(3), at(4)],
            [None, Some((2, 1)), Some((2, 1)), Some((4, 2))]
        );
        assert_eq!(
            [at(5), at(6), at(7), at(9)],
            [None, None, Some((7, 1)), Some((7, 1))]
        );
    }

    #[test]
    fn compaction_keeps_what_is_visible_or_happens_at_or_after_it() {
        let left = |compacted| {
            let (mut history, mut forgotten) = (example(), Vec::new());
            history.compact(compacted, &mut forgotten);
            assert_eq!(forgotten.len() + history.versions.len(), 4);
            history
                .versions
                .iter()
                .map(|meta| meta.revision.main)
                .collect::<Vec<_>>()
        };
        assert_eq!(left(1), [2, 4, 5, 7]);
        assert_eq!(left(3), [2, 4, 5, 7]);
        assert_eq!(left(4), [4, 5, 7]);
        assert_eq!(left(5), [5, 7]);
        assert_eq!(left(6), [7]);
        assert_eq!(left(7), [7]);
    }

    #[test]
    fn compacting_beyond_a_delete_leaves_nothing() {
        let (mut history, mut forgotten) = (History::default(), Vec::new());
        history.push(meta(2, 2, 1));
        history.push(meta(3, 0, 0));
        history.compact(3, &mut forgotten);
        assert!(!history.is_empty() && history.kept(3).is_empty());
        history.compact(4, &mut forgotten);
        assert!(history.is_empty());
    }
}
