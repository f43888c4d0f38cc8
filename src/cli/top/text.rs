//! Text on a screen: pieces of lines in their colours, and what becomes of them where the screen ends.

const RESET: &str = "\x1b[0m";

/// A part of a line, in one style: the codes that begin it, or none.
pub struct Piece {
    style: String,
    text: String,
}

impl Piece {
    /// Columns that it takes.
    pub fn length(&self) -> usize {
        length(&self.text)
    }
}

/// Makes one.
pub fn piece(style: impl Into<String>, text: impl Into<String>) -> Piece {
    Piece {
        style: style.into(),
        text: text.into(),
    }
}

/// A line that is no longer than the screen is wide; where something is cut off it ends in `…`.
pub fn line(pieces: &[Piece], width: usize) -> String {
    let all: usize = pieces.iter().map(Piece::length).sum();
    let mut room = match all > width {
        true => width.saturating_sub(1),
        false => width,
    };
    let mut line = String::new();
    for Piece { style, text } in pieces {
        let text: String = text.chars().take(room).collect();
        room -= length(&text);
        match style.is_empty() || text.is_empty() {
            true => line += &text,
            false => line += &format!("{style}{text}{RESET}"),
        }
    }
    if all > width && width > 0 {
        line.push('…');
    }
    line
}

/// Columns that a text takes.
pub fn length(text: &str) -> usize {
    text.chars().count()
}

/// Parts that stay whole, with `gap` between them, in lines of `width`.
pub fn flow<'a>(parts: impl IntoIterator<Item = &'a str>, gap: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if length(line) + length(gap) + length(part) <= width => {
                line.push_str(gap);
                line.push_str(part);
            }
            _ => lines.push(part.to_string()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_screen_ends_and_shows_it() {
        let pieces = [piece("", "leader "), piece("\x1b[1m", "node1"), piece("", " now")];
        assert_eq!(line(&pieces, 16), "leader \x1b[1mnode1\x1b[0m now");
        assert_eq!(line(&pieces, 15), "leader \x1b[1mnode1\x1b[0m n…");
        assert_eq!(line(&pieces, 10), "leader \x1b[1mno\x1b[0m…");
        assert_eq!(line(&pieces, 7), "leader…");
        assert_eq!(line(&pieces, 0), "");
    }

    #[test]
    fn what_flows_stays_whole_in_its_parts() {
        assert_eq!(
            flow(["k kill", "p pause", "q quit"], "  ", 15),
            ["k kill  p pause", "q quit"]
        );
        assert_eq!(flow("one two three".split(' '), " ", 4), ["one", "two", "three"]);
    }
}
