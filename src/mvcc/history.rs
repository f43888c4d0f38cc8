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
//!
//! Most keys have one version, and no lease: it is kept in place.

use super::Revision;
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
#[derive(Debug, Clone)]
pub struct History(Repr);

#[derive(Debug, Clone)]
enum Repr {
    /// A version without a lease, whose numbers are not extreme. Its fields stand here, as the mark that tells the two
    /// forms apart finds room among them.
    One {
        main: i64,
        create_revision: i64,
        version: u32,
        sub: u16,
    },
    /// Behind two pointers.
    #[expect(
        clippy::box_collection,
        reason = "so a history takes as little as a single version does"
    )]
    Any(Box<Vec<Meta>>),
}

impl Repr {
    fn of(meta: Meta) -> Repr {
        let small = u32::try_from(meta.version)
            .ok()
            .zip(u16::try_from(meta.revision.sub).ok());
        match small.filter(|_| meta.lease == 0) {
            Some((version, sub)) => Repr::One {
                main: meta.revision.main,
                create_revision: meta.create_revision,
                version,
                sub,
            },
            None => Repr::Any(Box::new(vec![meta])),
        }
    }

    /// The version, if it stands here.
    fn one(&self) -> Option<Meta> {
        let Repr::One {
            main,
            create_revision,
            version,
            sub,
        } = *self
        else {
            return None;
        };
        Some(Meta {
            revision: Revision {
                main,
                sub: u32::from(sub),
            },
            create_revision,
            version: i64::from(version),
            lease: 0,
        })
    }
}

impl History {
    /// Of a key's first version.
    pub fn new(meta: Meta) -> History {
        History(Repr::of(meta))
    }

    /// Adds the newest version.
    pub fn push(&mut self, meta: Meta) {
        debug_assert!(
            self.versions(|versions| versions.last().is_none_or(|last| last.revision < meta.revision)),
            "versions come in order"
        );
        match &mut self.0 {
            Repr::Any(versions) => versions.push(meta),
            one => *one = Repr::Any(Box::new(one.one().into_iter().chain([meta]).collect())),
        }
    }

    /// The version visible at a main revision; nothing if the key did not exist then.
    pub fn at(&self, main: i64) -> Option<Meta> {
        self.versions(|versions| {
            let newer = match versions.last() {
                Some(last) if last.revision.main <= main => versions.len(),
                _ => versions.partition_point(|meta| meta.revision.main <= main),
            };
            versions[..newer]
                .last()
                .copied()
                .filter(|meta| !meta.is_tombstone())
        })
    }

    /// All versions, to look at.
    fn versions<T>(&self, look: impl FnOnce(&[Meta]) -> T) -> T {
        match (&self.0, self.0.one()) {
            (Repr::Any(versions), _) => look(versions),
            (_, one) => look(one.as_slice()),
        }
    }

    /// Looks at the versions that can be read once `compacted` is the compacted revision, newest version at or before it
    /// included.
    pub fn kept<T>(&self, compacted: i64, look: impl FnOnce(&[Meta]) -> T) -> T {
        self.versions(|versions| look(kept(versions, compacted)))
    }

    /// Forgets what can neither be read nor watched any more, and tells what that was.
    pub fn compact(&mut self, compacted: i64, forgotten: &mut Vec<Revision>) {
        let gone = self.versions(|versions| {
            let readable = versions.len() - kept(versions, compacted).len();
            let watchable = versions.partition_point(|meta| meta.revision.main < compacted);
            forgotten.extend(
                versions[..readable.min(watchable)]
                    .iter()
                    .map(|meta| meta.revision),
            );
            readable.min(watchable)
        });
        if gone == 0 {
            return;
        }
        let rest = self.versions(|versions| versions[gone..].to_vec());
        *self = match &rest[..] {
            [one] => History::new(*one),
            _ => History(Repr::Any(Box::new(rest))),
        };
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.versions(<[Meta]>::is_empty)
    }
}

/// Those of some versions that can be read once `compacted` is the compacted revision.
fn kept(versions: &[Meta], compacted: i64) -> &[Meta] {
    let newer = versions.partition_point(|meta| meta.revision.main <= compacted);
    let visible = newer.checked_sub(1).filter(|at| !versions[*at].is_tombstone());
    &versions[visible.unwrap_or(newer)..]
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
        let mut history = History::new(meta(2, 2, 1));
        for version in [meta(4, 2, 2), meta(5, 0, 0), meta(7, 7, 1)] {
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
            let left: Vec<i64> =
                history.versions(|versions| versions.iter().map(|meta| meta.revision.main).collect());
            assert_eq!(forgotten.len() + left.len(), 4);
            left
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
        let (mut history, mut forgotten) = (History::new(meta(2, 2, 1)), Vec::new());
        history.push(meta(3, 0, 0));
        history.compact(3, &mut forgotten);
        assert!(!history.is_empty() && history.kept(3, <[Meta]>::is_empty));
        history.compact(4, &mut forgotten);
        assert!(history.is_empty());
    }

    #[test]
    fn a_single_version_is_what_was_put_in_and_takes_three_words() {
        let lease = Meta {
            lease: 7,
            ..meta(2, 2, 1)
        };
        let sub = Meta {
            revision: Revision {
                main: 3,
                sub: 1 << 20,
            },
            ..meta(3, 2, 2)
        };
        for one in [meta(2, 2, 1), meta(i64::MAX, 5, 1 << 40), lease, sub] {
            assert_eq!(History::new(one).at(i64::MAX), Some(one));
            assert_eq!(History::new(one).at(1), None);
        }
        assert!(!History::new(Meta::tombstone(Revision { main: 2, sub: 0 })).is_empty());
        assert_eq!(size_of::<History>(), 3 * size_of::<usize>());
    }
}
