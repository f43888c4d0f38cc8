//! Words of a line, as etcdctl's interactive forms split them: by blanks; in double quotes with Go's escapes; in single
//! quotes as they are.
//!
//! ```text
//! put "a b" 'c "d' e\f "\x00\n"   →   put | a b | c "d | e\f | NUL LF
//! ```

/// All words of a line.
pub fn split(line: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut rest) = (Vec::new(), line);
    while let Some((word, behind)) = first(rest, b"") {
        words.push(word);
        rest = behind;
    }
    words
}

/// The first word, and what is behind it. One without quotes ends at a blank, or before one of `ends`.
pub fn first<'a>(line: &'a [u8], ends: &[u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let line = line.trim_ascii_start();
    match line.first()? {
        b'"' => double_quoted(&line[1..]),
        b'\'' => {
            let end = line[1..].iter().position(|byte| *byte == b'\'')? + 1;
            Some((line[1..end].to_vec(), &line[end + 1..]))
        }
        _ => {
            let is_end = |byte: &u8| byte.is_ascii_whitespace() || ends.contains(byte);
            let end = line.iter().position(is_end).unwrap_or(line.len());
            (end > 0).then(|| (line[..end].to_vec(), &line[end..]))
        }
    }
}

fn double_quoted(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match rest {
            [b'"', behind @ ..] => return Some((word, behind)),
            [b'\\', behind @ ..] => rest = escape(behind, &mut word)?,
            [byte, behind @ ..] => {
                word.push(*byte);
                rest = behind;
            }
            [] => return None,
        }
    }
}

/// Adds what an escape stands for; `None` if it stands for nothing.
fn escape<'a>(rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let simple = match rest.first()? {
        b'a' => 7,
        b'b' => 8,
        b't' => 9,
        b'n' => 10,
        b'v' => 11,
        b'f' => 12,
        b'r' => 13,
        quoted @ (b'\\' | b'"' | b'\'') => *quoted,
        b'x' => return number(&rest[1..], 2, 16, word),
        b'u' => return number(&rest[1..], 4, 16, word),
        b'U' => return number(&rest[1..], 8, 16, word),
        b'0'..=b'7' => return number(rest, 3, 8, word),
        _ => return None,
    };
    word.push(simple);
    Some(&rest[1..])
}

fn number<'a>(rest: &'a [u8], digits: usize, base: u32, word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let text = std::str::from_utf8(rest.get(..digits)?).ok()?;
    let number = u32::from_str_radix(text, base).ok()?;
    match digits {
        // A byte.
        2 | 3 => word.push(u8::try_from(number).ok()?),
        // A character.
        _ => word.extend_from_slice(char::from_u32(number)?.encode_utf8(&mut [0; 4]).as_bytes()),
    }
    Some(&rest[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        let words = split(br#" put "a b" 'c "d' e\f "" "#);
        assert_eq!(words, [&b"put"[..], b"a b", b"c \"d", b"e\\f", b""]);
    }

    #[test]
    fn escapes_are_gos() {
        let words = split(br#""\x00\n\"\\\101\u00e9""#);
        assert_eq!(words, ["\0\n\"\\A\u{e9}".as_bytes()]);
        for wrong in [&br#""open"#[..], br#""\q""#, br#""\x0""#, br#""\777""#, b"'open"] {
            assert!(first(wrong, b"").is_none(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn a_bare_word_ends_where_it_must() {
        assert_eq!(first(b"key) = 1", b")"), Some((b"key".to_vec(), &b") = 1"[..])));
        assert_eq!(first(b"  ", b""), None);
    }
}
