//! Reading on: whoever wants values one after the other is mostly served by what was read with those before.
//!
//! Values that came one after the other lie so in their files. A start reads all of them; a call of the system for each,
//! and memory for each, would take longer than the copying. So when a value lies just behind what was read last, twice as
//! much is read, and more each time up to a bound. A place elsewhere begins anew, with that value alone:
//!
//! ```text
//! asked for    a    b    c    d    e    f        x    y
//! read         a    b c       d e f g            x    y z
//! ```

use std::io;

use bytes::Bytes;

use super::fs::File;
use super::values::Place;

/// Bytes that are read at once, at most, unless one value has more.
const MOST: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// What was read of a file last. What was written there is never changed, so it does not grow old.
#[derive(Default)]
pub(super) struct Ahead {
    file: u32,
    from: u64,
    bytes: Bytes,
}

impl Ahead {
    /// The value at a place, if it was read.
    pub(super) fn get(&self, place: &Place) -> Option<io::Result<Bytes>> {
        let begin = usize::try_from(place.begin().checked_sub(self.from)?).ok()?;
        let end = begin + place.length() as usize;
        (place.file() == self.file && end <= self.bytes.len())
            .then(|| place.checked(self.bytes.slice(begin..end)))
    }

    /// Reads the value at a place, and what follows if it follows what was read before. The file has `length` bytes.
    pub(super) fn read(&mut self, place: &Place, file: &dyn File, length: u64) -> io::Result<Bytes> {
        let wanted = match self.is_followed_by(place) {
            true => MOST.min(2 * self.bytes.len()),
            false => 0,
        };
        let there = usize::try_from(length.saturating_sub(place.begin())).unwrap_or(usize::MAX);
        let wanted = wanted.min(there).max(place.length() as usize);
        *self = Ahead {
            file: place.file(),
            from: place.begin(),
            bytes: file.read_at(place.begin(), wanted)?,
        };
        place.checked(self.bytes.slice(..place.length() as usize))
    }

    /// Whether a place is behind, or begins within, what was read, with no more between than that has.
    fn is_followed_by(&self, place: &Place) -> bool {
        let reach = self.from + 2 * self.bytes.len() as u64;
        place.file() == self.file && (self.from..reach).contains(&place.begin())
    }
}
