//! A queue that takes little more memory than what is in it.
//!
//! The rows that a member keeps, of entries and versions, have hundreds of thousands of places and are filled all the
//! time. A `VecDeque` would double when it is full, and keep what it once took.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

/// It grows by this part of what is in it, and at least by so many places.
const STEP: usize = 8;
const LEAST: usize = 64;

/// A `VecDeque`, but for how it grows and shrinks.
#[derive(Debug)]
pub struct Row<T>(VecDeque<T>);

impl<T> Default for Row<T> {
    fn default() -> Self {
        Row(VecDeque::new())
    }
}

impl<T> Row<T> {
    /// Adds behind the last.
    pub fn push_back(&mut self, item: T) {
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact((self.0.len() / STEP).max(LEAST));
        }
        self.0.push_back(item);
    }

    /// Removes the first.
    pub fn pop_front(&mut self) -> Option<T> {
        let first = self.0.pop_front();
        if self.0.len() + LEAST < self.0.capacity() / 4 {
            // Half stays, so that it does not grow and shrink in turns.
            self.0.shrink_to(self.0.capacity() / 2);
        }
        first
    }
}

impl<T> Deref for Row<T> {
    type Target = VecDeque<T>;

    fn deref(&self) -> &VecDeque<T> {
        &self.0
    }
}

impl<T> DerefMut for Row<T> {
    fn deref_mut(&mut self) -> &mut VecDeque<T> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_grows_by_a_part_and_gives_back_what_a_burst_took() {
        let mut row = Row::default();
        for number in 0..100_000 {
            row.push_back(number);
            assert!(row.capacity() <= row.len() + (row.len() / STEP).max(LEAST));
        }
        for number in 0..99_990 {
            assert_eq!(row.pop_front(), Some(number));
            assert!(row.capacity() <= 4 * (row.len() + 1 + LEAST) + 4);
        }
        assert!(row.iter().copied().eq(99_990..100_000));
    }
}
