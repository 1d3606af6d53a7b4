//! Server versions as PostgreSQL counts them: `server_version_num`, 180006 for 18.6.

/// The oldest major that is supported.
pub(crate) const OLDEST_MAJOR: u32 = 13;

/// From the `server_version` that every server reports at startup, such as `15.18 (Debian
/// 15.18-0+deb12u1)`, `18beta1` or `17.4`. The number is not asked for by SQL, because some
/// managed walsenders refuse SHOW.
pub(crate) fn parse(text: &str) -> Option<u32> {
    let digits = |text: &str| -> (Option<u32>, usize) {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        (text.get(..end).and_then(|digits| digits.parse().ok()), end)
    };
    let (major, end) = digits(text);
    let minor = text
        .get(end..)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| digits(rest).0)
        .unwrap_or(0);
    major?.checked_mul(10_000)?.checked_add(minor)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions() {
        assert_eq!(parse("15.18 (Debian 15.18-0+deb12u1)"), Some(150_018));
        assert_eq!(parse("18beta1"), Some(180_000));
        assert_eq!(parse("17.4"), Some(170_004));
        assert_eq!(parse("13"), Some(130_000));
        assert_eq!(parse("devel"), None);
        assert_eq!(parse("99999999999.1"), None);
    }
}
