//! Several files in one input: what a fuzzer changes is one run of bytes, and a journal or a superblock is more.

/// Reads an input as parts: each a tag (1 byte), a place (8 bytes, little-endian), a length (2 bytes) and that many
/// bytes, the last one as many as there are. What tag and place mean is the target's business.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// The parts of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Appends a part to an input that is being made. What does not fit into a part's length is left out.
    pub fn put(input: &mut Vec<u8>, tag: u8, place: u64, bytes: &[u8]) {
        let length = bytes.len().min(usize::from(u16::MAX));
        input.push(tag);
        input.extend_from_slice(&place.to_le_bytes());
        input.extend_from_slice(&(length as u16).to_le_bytes());
        input.extend_from_slice(&bytes[..length]);
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = (u8, u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = self.0.split_first()?;
        let (place, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        self.0 = rest;
        Some((*tag, u64::from_le_bytes(*place), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_the_last_may_be_cut() {
        let mut input = Vec::new();
        Parts::put(&mut input, 1, 2, b"three");
        Parts::put(&mut input, 4, u64::MAX, b"");
        Parts::put(&mut input, 5, 0, b"six");
        let parts: Vec<_> = Parts::new(&input).collect();
        assert_eq!(parts, [(1, 2, &b"three"[..]), (4, u64::MAX, b""), (5, 0, b"six")]);
        assert_eq!(Parts::new(&input[..input.len() - 1]).last(), Some((5, 0, &b"si"[..])));
        assert_eq!(Parts::new(&[1; 10]).count(), 0);
    }
}
