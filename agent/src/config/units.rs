//! Durations (`90s`, `15m`, `12h`, `7d`) and sizes (`4096`, `64KiB`, `1GiB`) as people write them.

use std::time::Duration;

/// Parses a whole number and a unit: `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "a whole number and a unit, such as `30s`, `15m`, `12h` or `7d`";
    let wrong = || format!("`{}` is not a duration: expected {EXPECTED}", shown(text));
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits(&text[..text.len() - 1]).ok_or_else(wrong)?;
    number
        .checked_mul(unit)
        .filter(|seconds| *seconds <= 10 * 366 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// Parses bytes: a whole number, alone or with `KiB`, `MiB`, `GiB` or `TiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "bytes, such as `4096`, `64MiB` or `10GiB`";
    let wrong = || format!("`{}` is not a size: expected {EXPECTED}", shown(text));
    let (number, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    let number = digits(number).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The shortest form that [`parse_duration`] reads back.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => "0s".to_owned(),
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// For `#[serde(with)]` on a [`Duration`].
pub(super) mod duration {
    use super::*;

    pub(in crate::config) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text: String = serde::Deserialize::deserialize(deserializer)?;
        parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

/// For `#[serde(with)]` on a [`Duration`] that may be absent.
pub(super) mod optional_duration {
    use super::*;

    pub(in crate::config) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }
}

/// For `#[serde(with)]` on a number of bytes.
pub(super) mod size {
    use super::*;

    #[derive(serde::Deserialize)]
    #[serde(
        untagged,
        expecting = "expected bytes, such as 4096, \"64MiB\" or \"10GiB\""
    )]
    enum Size {
        Number(u64),
        Text(String),
    }

    pub(in crate::config) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        match serde::Deserialize::deserialize(deserializer)? {
            Size::Number(bytes) => Ok(bytes),
            Size::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for text in ["90s", "15m", "12h", "7d", "61s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn a_duration_without_a_unit_or_with_a_sign_is_refused() {
        for bad in [
            "",
            "s",
            "12",
            "-1s",
            "+1s",
            "1.5h",
            "1w",
            "１s",
            "99999999999d",
            "1 h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "KiB", "1KB", "-1", "1.5GiB", "99999999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
