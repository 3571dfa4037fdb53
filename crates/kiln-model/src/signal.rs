//! Signals as people name them (signal(7)).

/// Linux's, with the numbers that x86-64 and arm64 have.
const NAMES: [(&str, i32); 36] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", REAL_TIME.0),
    ("RTMAX", REAL_TIME.1),
];
/// The first and the last as the C library counts them.
const REAL_TIME: (i32, i32) = (34, 64);

/// The names without `SIG`, in alphabetical order but for the real-time ones, which are last.
pub fn signal_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name)
}

/// The number of a signal, by its name in any case, with `SIG` or without it, or by itself.
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<u8>() {
        let number = i32::from(number);
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == bare) {
        return Some(*number);
    }
    // 15 of them are counted from each end.
    let offset = |start: &str, most: u8| {
        let offset: u8 = bare.strip_prefix(start)?.parse().ok()?;
        (1..=most).contains(&offset).then_some(i32::from(offset))
    };
    offset("RTMIN+", 15)
        .map(|offset| REAL_TIME.0 + offset)
        .or_else(|| offset("RTMAX-", 14).map(|offset| REAL_TIME.1 - offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_those_of_linux() {
        for (right, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMIN+15", 49),
            ("RTMAX-14", 50),
            ("sigusr1", 10),
            ("SIGABRT", 6),
            ("SIGPWR", 30),
            ("64", 64),
        ] {
            assert_eq!(signal_number(right), Some(number), "{right}");
        }
        for wrong in [
            "",
            "0",
            "65",
            "-1",
            "SIGNOTHING",
            "RTMIN+16",
            "RTMAX-0",
            "RTMIN+-1",
            "SIG",
        ] {
            assert_eq!(signal_number(wrong), None, "{wrong}");
        }
    }
}
