//! What is typed, key by key, and the terminal that it is typed into.

use std::io::{Read, Write};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc;

/// Keys that were typed and not yet taken. When it is full, typing waits.
const TYPED: usize = 16;

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The member above.
    Up,
    /// The member below.
    Down,
    /// A sentence about each event, or none.
    Explain,
    /// Something is done to a member.
    Act(char),
    /// The end.
    Quit,
}

/// The terminal gives each key at once and shows none, until this is dropped; what was on it before is there again then.
pub struct Raw(Termios);

impl Raw {
    /// Begins, and reads keys.
    pub fn start() -> std::io::Result<(Raw, mpsc::Receiver<Key>)> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw)?;
        // Another screen, without a cursor.
        put("\x1b[?1049h\x1b[?25l\x1b[2J");
        let (typed, keys) = mpsc::channel(TYPED);
        std::thread::spawn(move || read(&typed));
        Ok((Raw(before), keys))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        put("\x1b[?25h\x1b[?1049l");
        // A terminal that is gone needs it no more.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn put(codes: &str) {
    let mut out = std::io::stdout().lock();
    // A terminal that is gone shows nothing anyway.
    let _ = out.write_all(codes.as_bytes()).and_then(|()| out.flush());
}

fn read(typed: &mpsc::Sender<Key>) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
        for key in meanings(&buffer[..length]) {
            if typed.blocking_send(key).is_err() {
                return;
            }
        }
    }
}

/// What the bytes of some keys mean.
fn meanings(bytes: &[u8]) -> Vec<Key> {
    let (mut keys, mut rest) = (Vec::new(), bytes);
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        keys.extend(match first {
            0x1b if rest.starts_with(b"[A") || rest.starts_with(b"OA") => {
                rest = &rest[2..];
                Some(Key::Up)
            }
            0x1b if rest.starts_with(b"[B") || rest.starts_with(b"OB") => {
                rest = &rest[2..];
                Some(Key::Down)
            }
            // Ctrl-C and Ctrl-D.
            b'q' | 3 | 4 => Some(Key::Quit),
            b'e' => Some(Key::Explain),
            act @ (b'k' | b'p' | b's' | b'w' | b'l' | b'c') => Some(Key::Act(char::from(*act))),
            _ => None,
        });
    }
    keys
}

/// Columns and rows.
pub fn size() -> (usize, usize) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 => (usize::from(size.ws_col), usize::from(size.ws_row)),
        _ => (80, 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        assert_eq!(
            meanings(b"\x1b[A\x1b[Bk\x1bOBex\x03"),
            [
                Key::Up,
                Key::Down,
                Key::Act('k'),
                Key::Down,
                Key::Explain,
                Key::Quit
            ]
        );
        assert_eq!(meanings(b"\x1b"), []);
    }
}
