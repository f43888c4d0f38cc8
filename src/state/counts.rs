//! What is done to the store, counted as etcd counts it, so that dashboards show the same.
//!
//! etcd does all of it in passes over its store, and counts at each one's end: ranges, puts and deletes, and the pass
//! itself as a transaction if it had more than one of them. A put that wants the previous pair is a range and a put, and
//! so a transaction; a transaction that writes is two passes, one for what it compares and checks, one for what it does;
//! the end of a lease is a pass of as many deletes as it had keys; and etcd ranges over one key to know the revision that
//! it answers a compaction with. Every member that applies a command counts it; a read
//! is counted by the member that serves it.

/// Numbers of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ranges, one for each comparison too.
    pub ranges: u64,
    /// Keys put.
    pub puts: u64,
    /// Deletes of ranges, however many keys these have.
    pub deletes: u64,
    /// Passes of more than one of them.
    pub txns: u64,
    /// Of the pass that has not ended.
    in_pass: u64,
}

impl Counts {
    /// A range is read.
    pub fn range(&mut self) {
        self.ranges += 1;
        self.in_pass += 1;
    }

    /// A key is put.
    pub fn put(&mut self) {
        self.puts += 1;
        self.in_pass += 1;
    }

    /// A range is deleted.
    pub fn delete(&mut self) {
        self.deletes += 1;
        self.in_pass += 1;
    }

    /// The pass ends.
    pub fn end_pass(&mut self) {
        self.txns += u64::from(self.in_pass > 1);
        self.in_pass = 0;
    }
}
