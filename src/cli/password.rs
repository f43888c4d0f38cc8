//! Asking for a password: not shown while it is typed.

use std::io::{BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::failed::Failed;

/// Asks, and reads a line of stdin.
pub fn ask(question: &str) -> Result<String, Failed> {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let hidden = Hidden::start();
    let line = read_line();
    if hidden.is_some() {
        let _ = writeln!(stderr);
    }
    line
}

/// Asks twice, as what is set cannot be seen.
pub fn ask_twice(user: &str) -> Result<String, Failed> {
    let first = ask(&format!("Password of {user}: "))?;
    if first.is_empty() {
        return Err(Failed::arguments("empty password"));
    }
    let second = ask(&format!("Type password of {user} again for confirmation: "))?;
    match first == second {
        true => Ok(first),
        false => Err(Failed::arguments("given passwords are different")),
    }
}

/// Reads a line of stdin.
pub fn read_line() -> Result<String, Failed> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failed::input(format!("cannot read the password: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_string())
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Hidden(Termios);

impl Hidden {
    fn start() -> Option<Hidden> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
        Some(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
