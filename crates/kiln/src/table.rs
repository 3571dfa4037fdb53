//! Columns, durations and sizes for people.

use std::time::Duration;

/// Rows as columns, each as wide as its widest cell; the first row is the head.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// Three significant digits are enough: `850 µs`, `12.3 ms`, `1.50 s`, `14 min 59 s`.
pub(crate) fn duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let seconds = duration.as_secs();
    if micros < 1000 {
        format!("{micros} µs")
    } else if micros < 1_000_000 {
        format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
    } else if seconds < 60 {
        format!("{:.2} s", duration.as_secs_f64())
    } else if seconds < 3600 {
        format!("{} min {} s", seconds / 60, seconds % 60)
    } else {
        format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
    }
}

pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            columns(&[
                row(["A", "B", "C"]),
                row(["aaa", "µ", ""]),
                row(["", "bb", "c"])
            ]),
            "A    B   C\naaa  µ\n     bb  c"
        );
    }

    #[test]
    fn durations_and_sizes_are_short() {
        for (micros, text) in [
            (850, "850 µs"),
            (12_345, "12.3 ms"),
            (1_500_000, "1.50 s"),
            (899_000_000, "14 min 59 s"),
            (5_400_000_000, "1 h 30 min"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
        for (bytes, text) in [(0, "0 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
