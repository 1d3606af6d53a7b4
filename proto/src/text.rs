//! Names whose bytes need not be UTF-8.

/// The text as it is, with `\xNN` for every byte that is no part of UTF-8.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_utf8_is_escaped() {
        assert_eq!(escaped("Größe\\x".as_bytes()), "Größe\\x");
        assert_eq!(escaped(b"a\xffb\xc3"), "a\\xffb\\xc3");
    }
}
