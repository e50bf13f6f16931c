//! Foreign text for a reason: bounded however much arrives, and readable whatever it holds. Pure.

use std::collections::VecDeque;

/// How much of the end of a command's standard error becomes the reason, in characters.
pub const STDERR_CHARS_MAX: usize = 2_000;

/// The most bytes that many characters take in UTF-8.
const TAIL_BYTES_MAX: usize = STDERR_CHARS_MAX * 4;

/// The last bytes of a stream: however long that is, only [`TAIL_BYTES_MAX`] of it are held.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    is_cut: bool,
}

impl Tail {
    /// Appends `chunk`, and lets go of what lies too far back.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let kept = &chunk[chunk.len().saturating_sub(TAIL_BYTES_MAX)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(TAIL_BYTES_MAX);
        self.is_cut |= excess > 0 || kept.len() < chunk.len();
        self.bytes.drain(..excess); // OK: kept ≤ TAIL_BYTES_MAX, so the excess is at most what is held
        self.bytes.extend(kept);
    }

    /// The last [`STDERR_CHARS_MAX`] characters, made [`readable`], after a mark where something was cut.
    pub(super) fn into_text(self) -> String {
        let bytes: Vec<u8> = self.bytes.into();
        // A cut may fall inside a character, which has at most three bytes that continue it.
        let torn = bytes.iter().take(3).take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count();
        let text = readable(&bytes[if self.is_cut { torn } else { 0 }..]);
        let count = text.chars().count();
        if self.is_cut || count > STDERR_CHARS_MAX {
            // One character less makes room for the mark.
            let excess = count.saturating_sub(STDERR_CHARS_MAX - 1);
            format!("…{}", text.chars().skip(excess).collect::<String>())
        } else {
            text
        }
    }
}

/// `bytes` as text for people: what is not UTF-8 and every control character but line feed and tab becomes U+FFFD, space
/// at both ends is cut off.
///
/// So no NUL reaches PostgreSQL, which refuses it in a text, and no escape sequence a terminal.
pub(super) fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let is_odd = |char: char| char.is_control() && char != '\n' && char != '\t';
    text.trim().replace(is_odd, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(chunks: &[&[u8]]) -> String {
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.push(chunk);
        }
        tail.into_text()
    }

    #[test]
    fn a_short_stream_is_kept_whole_without_the_space_around_it() {
        assert_eq!(tail_of(&[b"no such", b" user\n"]), "no such user");
        assert_eq!(tail_of(&[]), "");
    }

    #[test]
    fn a_long_stream_keeps_its_last_characters_after_a_mark() {
        let filling = vec![b'x'; 64 * 1024];
        let text = tail_of(&[&filling, &filling, b"the end"]);

        assert_eq!(text.chars().count(), STDERR_CHARS_MAX);
        assert!(text.starts_with("…x") && text.ends_with("xthe end"));
    }

    #[test]
    fn a_stream_of_any_length_costs_the_same_memory() {
        let mut tail = Tail::default();
        for _ in 0..10_000 {
            tail.push(&[b'x'; 1_000]);
        }

        assert_eq!(tail.bytes.len(), TAIL_BYTES_MAX);
        assert!(tail.bytes.capacity() <= 4 * TAIL_BYTES_MAX, "{}", tail.bytes.capacity());
    }

    #[test]
    fn a_character_torn_by_the_cut_is_left_out() {
        for shift in 0..4 {
            let stream = format!("{}{}", "x".repeat(shift), "🦀".repeat(TAIL_BYTES_MAX));
            let text = tail_of(&[stream.as_bytes(), &b"yyy"[..shift.min(3)]]);

            assert!(text.starts_with("…🦀"), "{}", &text[..20]);
            assert!(!text.contains('\u{fffd}'));
            assert!(text.chars().count() <= STDERR_CHARS_MAX);
        }
    }

    #[test]
    fn what_is_not_text_is_shown_as_a_replacement() {
        assert_eq!(readable(b"a\0b\xffc\x1b[31m"), "a\u{fffd}b\u{fffd}c\u{fffd}[31m");
        assert_eq!(readable("two\r\nlines\tof é\n".as_bytes()), "two\nlines\tof é");
    }
}
