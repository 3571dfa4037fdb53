//! Sizes and durations as people write them.

use std::time::Duration;

/// `256MiB`, `64KiB`, `1GiB`, `1500KB`, `4096B`: whole numbers of bytes with a unit.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor).filter(|bytes| *bytes <= 1 << 50)
}

/// `500ms`, `1s`, `15m`, `24h`, `7d`, and sums such as `1h30m`. Never more than ten years.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut below = u64::MAX;
    while !rest.is_empty() || total == 0 && below == u64::MAX {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        // `30m1h` is a slip of the pen rather than a duration.
        if factor >= below {
            return None;
        }
        below = factor;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = after;
    }
    (total <= 3_650 * 86_400_000).then(|| Duration::from_millis(total))
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        for (text, bytes) in [
            ("256MiB", Some(256 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("1500KB", Some(1_500_000)),
            ("7B", Some(7)),
            ("256", None),
            ("256M", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5GiB", None),
            ("99999999999999999999B", None),
            ("", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }

    #[test]
    fn durations_have_units_from_large_to_small() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("15m", Some(900_000)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("7d", Some(604_800_000)),
            ("30m1h", None),
            ("1s1s", None),
            ("15", None),
            ("m", None),
            ("1.5s", None),
            ("1w", None),
            ("9999999d", None),
            ("", None),
        ] {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        }
    }
}
