//! Where words go: answers to stdout, everything else to stderr.
//!
//! `println!` panics when the reader of a pipe has gone (`pontoon watch … | head`). Here that ends the verb, quietly
//! and with success: the reader has what it wanted.

use std::io::{ErrorKind, Write};

use super::failed::{Failed, exit};

/// Writes an answer, and sees to it that it arrives now.
pub fn write(bytes: &[u8]) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failed::silent(0)),
        Err(error) => Err(Failed::new(exit::IO, format!("cannot write: {error}"))),
    }
}

/// Writes a line of an answer.
pub fn line(line: impl AsRef<str>) -> Result<(), Failed> {
    write(format!("{}\n", line.as_ref()).as_bytes())
}

/// Says something that is no answer. Where nobody can hear it, it is lost.
pub fn say(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
}
