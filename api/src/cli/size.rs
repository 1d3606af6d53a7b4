//! Sizes as people write them.

/// `16777216`, `16MiB`, `16 MB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => {
            return Err(format!(
                "\"{unit}\" is no unit: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a whole number, such as 16777216 or 16MiB".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("16777216"), Ok(16_777_216));
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(bytes("20 GB"), Ok(20_000_000_000));
        for text in ["", "GB", "1.5GB", "10 apples", "-1", "99999999999TiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
