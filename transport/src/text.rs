//! Text from people and peers: base32 as it gets typed, and strings made safe to show.

/// The base32 symbols of `text`, upper case, without dashes and white space. `None` once there are more than `cap`
/// of them, or at a character that is no symbol.
///
/// 0, 1 and 8 are not in the alphabet (RFC 4648); they are read as the letters they are mistaken for.
pub(crate) fn base32_symbols(text: &str, cap: usize) -> Option<String> {
    let mut symbols = String::new();
    for character in text.chars().filter(|c| *c != '-' && !c.is_whitespace()) {
        let symbol = match character.to_ascii_uppercase() {
            '0' => 'O',
            '1' => 'I',
            '8' => 'B',
            symbol @ ('A'..='Z' | '2'..='7') => symbol,
            _ => return None,
        };
        if symbols.len() == cap {
            return None;
        }
        symbols.push(symbol);
    }
    Some(symbols)
}

/// Bytes from outside as text that cannot drive a terminal or flood a log: printable ASCII, escapes for the rest,
/// cut after `cap` bytes of input.
pub(crate) fn shown(bytes: &[u8], cap: usize) -> String {
    let cut = bytes.get(..cap).unwrap_or(bytes);
    let mut text = cut.escape_ascii().to_string();
    if cut.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_has_no_control_characters_and_an_end() {
        assert_eq!(shown(b"ok\x1b[2J\n", 64), "ok\\x1b[2J\\n");
        assert_eq!(shown(&[b'a'; 100], 3), "aaa…");
    }
}
