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

/// In the largest unit in which it is whole.
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = units
        .iter()
        .find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    match fitting {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// The size that `512mb`, `1.5 GiB` or Kubernetes' `512Mi` means.
pub(crate) fn nearest_size(text: &str) -> Option<String> {
    let (number, unit) = split_decimal(text)?;
    let (unit, below) = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" => ("MiB", "KiB"),
        "mb" => ("MB", "KB"),
        "b" | "byte" | "bytes" if number.fract() == 0.0 => ("B", "B"),
        "k" | "ki" | "kib" => ("KiB", "B"),
        "kb" => ("KB", "B"),
        "g" | "gi" | "gib" => ("GiB", "MiB"),
        "gb" => ("GB", "MB"),
        "t" | "ti" | "tib" => ("TiB", "GiB"),
        "tb" => ("TB", "GB"),
        _ => return None,
    };
    if number.fract() == 0.0 {
        return sure(format!("{number}{unit}"), size);
    }
    let step = if unit.ends_with("iB") { 1024.0 } else { 1000.0 };
    sure(format!("{}{below}", (number * step).floor()), size)
}

/// The duration that `10 seconds`, `1.5h` or `5 min` means.
pub(crate) fn nearest_duration(text: &str) -> Option<String> {
    let (number, unit) = split_decimal(text)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "ms" | "msec" | "millisecond" | "milliseconds" => 1.0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1_000.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000.0,
        "d" | "day" | "days" => 86_400_000.0,
        "w" | "week" | "weeks" => 604_800_000.0,
        _ => return None,
    };
    // The largest unit in which it is whole.
    let milliseconds = (number * unit).floor();
    if milliseconds == 0.0 && number > 0.0 {
        return None;
    }
    let units = [
        ("d", 86_400_000.0),
        ("h", 3_600_000.0),
        ("m", 60_000.0),
        ("s", 1_000.0),
    ];
    let whole = units.iter().find(|(_, unit)| milliseconds % unit == 0.0);
    let (name, unit) = whole.unwrap_or(&("ms", 1.0));
    sure(format!("{}{name}", milliseconds / unit), duration)
}

fn sure<T>(written: String, read: fn(&str) -> Option<T>) -> Option<String> {
    read(&written).map(|_| written)
}

fn split_decimal(text: &str) -> Option<(f64, &str)> {
    let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let (number, unit) = text.split_at(text.bytes().take_while(is_number).count());
    Some((number.parse().ok()?, unit.trim()))
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

    #[test]
    fn what_was_meant_is_known() {
        for (text, size) in [
            ("512mb", Some("512MB")),
            ("512Mi", Some("512MiB")),
            ("512", Some("512MiB")),
            ("1.5 GiB", Some("1536MiB")),
            ("0.5kb", Some("500B")),
            ("1.5B", None),
            ("1000000TB", None),
            ("x", None),
            ("5 apples", None),
        ] {
            assert_eq!(nearest_size(text).as_deref(), size, "{text}");
        }
        for bytes in [1, 1000, 4096, 4 << 20, 1 << 30, 3 << 29] {
            assert_eq!(size(&size_text(bytes)), Some(bytes));
        }
        assert_eq!(size_text(4 << 20), "4MiB");
        for (text, duration) in [
            ("10 seconds", Some("10s")),
            ("1.5h", Some("90m")),
            ("90 Min", Some("90m")),
            ("2w", Some("14d")),
            ("0.25", Some("250ms")),
            ("0.1ms", None),
            ("9999999d", None),
            ("s", None),
        ] {
            assert_eq!(nearest_duration(text).as_deref(), duration, "{text}");
        }
    }
}
