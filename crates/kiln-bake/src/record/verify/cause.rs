//! Why two bakes made two contents of one file: guessed from what stands where they begin to differ. Pure.

use std::path::Path;

use regex::bytes::Regex;

/// What was otherwise in the second bake.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// The times between which the bakes were made: seconds since 1970.
    pub times: (i64, i64),
    /// Added to the clock that the second one saw.
    pub moved: i64,
    /// Paths that only one of the bakes had anything to do with.
    pub paths: Vec<String>,
    /// Names of the machine, then and now.
    pub hosts: Vec<String>,
    /// Processors of the first bake, as far as known, and of the second.
    pub processors: (usize, usize),
}

/// Said of what saw how the clock was moved, and not what it says.
pub(super) const CLOCK_SEEN: &str =
    "/etc/ld.so.preload, which `kiln verify` puts there to move the clock";

/// Around the first difference, in bytes to each side.
const AROUND: usize = 64;
/// Random bytes agree by chance in one of 256.
const RANDOM: f64 = 0.9;
/// Random letters and digits agree more often.
const RANDOM_TEXT: f64 = 0.6;

const DATES: &str = r"(?x-u)
    \d{4}[-/.]?(0[1-9]|1[0-2])[-/.]?([0-2]\d|3[01])
  | \d{1,2}:\d{2}(:\d{2})?
  | \b1\d{9}(\d{3})?\b
  | \b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b
  | \b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b
  | \b20\d{2}\b";

/// `old` and `new` differ.
pub(super) fn of(path: &Path, old: &[u8], new: &[u8], circumstances: &Circumstances) -> String {
    let common = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let why = why(path, old, new, common, circumstances);
    format!("its content from byte {common} on: {why}")
}

fn why(path: &Path, old: &[u8], new: &[u8], at: usize, circumstances: &Circumstances) -> String {
    let Circumstances {
        times,
        moved,
        paths,
        hosts,
        processors,
    } = circumstances;
    let from = at.saturating_sub(AROUND);
    let around = |bytes: &'_ [u8]| bytes[from..bytes.len().min(at + AROUND)].to_vec();
    let (before, after) = (around(old), around(new));
    let holds = |text: &str| {
        let found = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        !text.is_empty() && (found(&before) || found(&after))
    };
    let name = path.to_string_lossy();
    if name.ends_with(".pyc") && (8..16).contains(&at) {
        return "the time of its source, which Python writes into a .pyc: compile with --invalidation-mode checked-hash".to_owned();
    }
    if name.ends_with("var/cache/ldconfig/aux-cache") {
        return "inode numbers and times, which ldconfig keeps there: remove it in the same step"
            .to_owned();
    }
    if old.starts_with(&[0x1f, 0x8b]) && new.starts_with(&[0x1f, 0x8b]) && (4..8).contains(&at) {
        return "the time in the header of gzip: compress with `gzip -n`".to_owned();
    }
    if holds("ld.so.preload") || holds(".kiln-clock.so") {
        return CLOCK_SEEN.to_owned();
    }
    if let Some(path) = paths.iter().find(|path| holds(path)) {
        return format!("a path of the machine ({path})");
    }
    if hosts.iter().any(|host| holds(host)) {
        return "the name of the machine".to_owned();
    }
    if holds("PRIVATE KEY") || name.contains("ssh_host_") {
        return "a key that is made anew each time: make it when an instance starts".to_owned();
    }
    let lines = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        lines.sort();
        lines
    };
    if old.len() == new.len() && lines(old) == lines(new) {
        return "the same lines in another order: sort them (`sort`, `LC_ALL=C`)".to_owned();
    }
    let number = |bytes: &[u8]| -> Option<usize> {
        let start = bytes[..at].iter().rposition(|byte| !byte.is_ascii_digit());
        let start = start.map_or(0, |before| before + 1);
        let rest = &bytes[start..];
        let end = rest
            .iter()
            .position(|byte| !byte.is_ascii_digit())
            .unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
    };
    if processors.0 != processors.1
        && (number(old), number(new)) == (Some(processors.0), Some(processors.1))
    {
        return format!(
            "the number of processors, which was {} and then {}",
            processors.0, processors.1
        );
    }
    let dates = |bytes: &[u8]| {
        let regex = Regex::new(DATES).ok()?;
        // The difference may be at the end of a date or just behind it: `10:59` and `10:5`.
        regex
            .find_iter(bytes)
            .find(|found| found.start() <= at - from && at - from <= found.end())
            .map(|found| String::from_utf8_lossy(found.as_bytes()).into_owned())
    };
    if let (Some(old), Some(new)) = (dates(&before), dates(&after)) {
        return format!(
            "a time of day (`{old}`, and then `{new}`): use SOURCE_DATE_EPOCH instead of the clock (a definition's steps have it, a Dockerfile's with ARG SOURCE_DATE_EPOCH)"
        );
    }
    if binary_time(old, at, *times) && binary_time(new, at, (times.0, times.1 + moved)) {
        return "a time of day, as a binary number: use SOURCE_DATE_EPOCH instead of the clock (a definition's steps have it, a Dockerfile's with ARG SOURCE_DATE_EPOCH)".to_owned();
    }
    let (one, other) = (&old[at..], &new[at..]);
    let pairs = one.len().min(other.len()).min(4096);
    let differ = one
        .iter()
        .zip(other)
        .take(pairs)
        .filter(|(a, b)| a != b)
        .count();
    let share = differ as f64 / pairs.max(1) as f64;
    let is_text = one[..pairs]
        .iter()
        .chain(&other[..pairs])
        .all(|byte| byte.is_ascii());
    if pairs >= 4 && share >= if is_text { RANDOM_TEXT } else { RANDOM } {
        return "random bytes, or something that was made of them: give what makes them a fixed seed, or make them when an instance starts".to_owned();
    }
    "it is made otherwise each time, of something that kiln doesn't know".to_owned()
}

/// Seconds of that time in one of the bytes' usual orders, near `at`.
fn binary_time(bytes: &[u8], at: usize, (from, to): (i64, i64)) -> bool {
    // A day to each side: it may be of before the bake, and in another zone.
    let fits = |value: u32| (from - 86_400..=to + 86_400).contains(&i64::from(value));
    (at.saturating_sub(7)..=at).any(|start| {
        let word = bytes
            .get(start..start + 4)
            .and_then(|word| <[u8; 4]>::try_from(word).ok());
        word.is_some_and(|word| fits(u32::from_le_bytes(word)) || fits(u32::from_be_bytes(word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_known_by_what_stands_there() {
        let now = 1_800_000_000;
        let circumstances = Circumstances {
            times: (now - 10, now),
            moved: 1000,
            paths: vec!["/var/lib/kiln/work/verify-7".into()],
            hosts: vec!["builder-eu-1".into()],
            processors: (8, 1),
        };
        let stamp = |seconds: u32| [b"head".as_slice(), &seconds.to_le_bytes(), b"tail"].concat();
        let pyc = |time: u8| [b"\xa7\r\r\n\0\0\0\0".as_slice(), &[time, 0, 0, 0]].concat();
        let gzip = |time: u8| [b"\x1f\x8b\x08\0".as_slice(), &[time, 0, 0, 0]].concat();
        let cases: [(&str, Vec<u8>, Vec<u8>, &str); 15] = [
            (
                "a",
                b"built Sat Nov 21 15:59:59 UTC 2026\n".into(),
                b"built Sun Dec 26 15:59:59 UTC 2027\n".into(),
                "a time of day (`Sat`",
            ),
            (
                "a",
                b"t=1800000000".into(),
                b"t=1800000900".into(),
                "a time of day",
            ),
            (
                "a",
                b"2026-11-21".into(),
                b"2026-11-22".into(),
                "a time of day",
            ),
            (
                "a",
                stamp(now as u32 - 5),
                stamp(now as u32 + 995),
                "as a binary number",
            ),
            ("a.pyc", pyc(1), pyc(2), ".pyc"),
            ("a.gz", gzip(1), gzip(2), "gzip -n"),
            (
                "var/cache/ldconfig/aux-cache",
                b"1".into(),
                b"2".into(),
                "inode",
            ),
            (
                "a",
                b"kernel-img.conf\nlibaudit.conf".into(),
                b"kernel-img.conf\nld.so.preload".into(),
                "to move the clock",
            ),
            (
                "a",
                b"src=/srv/x".into(),
                b"src=/var/lib/kiln/work/verify-7/x".into(),
                "a path of the machine",
            ),
            (
                "a",
                b"by web".into(),
                b"by builder-eu-1".into(),
                "the name of the machine",
            ),
            ("a", b"jobs 8\n".into(), b"jobs 1\n".into(), "processors"),
            ("a", b"x\ny\nz".into(), b"y\nx\nz".into(), "another order"),
            (
                "a",
                b"\x12\x9a\xf3\x04\x8e\x71\x44\xd0".into(),
                b"\xc1\x3b\x20\x99\x17\xee\x81\x0a".into(),
                "random",
            ),
            (
                "a",
                b"id=f3b0c44298fc1c14".into(),
                b"id=9afbf4c8996fb924".into(),
                "random",
            ),
            (
                "a",
                b"one of a kind that nobody knows".into(),
                b"two of a kind that nobody knows".into(),
                "doesn't know",
            ),
        ];
        for (path, old, new, expected) in cases {
            let found = of(Path::new(path), &old, &new, &circumstances);
            assert!(found.contains(expected), "{path} {old:?}: {found}");
        }
        // One is the beginning of the other.
        let found = of(Path::new("a"), b"abc", b"abcd", &circumstances);
        assert!(found.starts_with("its content from byte 3 on"), "{found}");
    }
}
