//! `--chmod`: octal, or symbolic as of chmod(1) in BuildKit's reading of it, which is FreeBSD's setmode(3).

const SET_IDS: u32 = 0o6000;
const STICKY: u32 = 0o1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Change>),
}

/// One thing that is done to a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set(u32),
    Clear(u32),
    /// What may be executed by someone, and folders.
    Search(u32),
    /// From one class to others, by `+`, `-` or `=`.
    Copy {
        from: char,
        operator: char,
        /// Of the lowest three bits of each class.
        to: u32,
    },
}

impl Chmod {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok()?;
            return (mode <= 0o7777).then_some(Self::Octal(mode));
        }
        let mut changes = Vec::new();
        // Only once of all clauses does `=` without letters clear anything.
        let mut has_cleared = false;
        for clause in text.split(',') {
            take(clause, &mut changes, &mut has_cleared)?;
        }
        Some(Self::Symbolic(compressed(&changes)))
    }

    pub(super) fn apply(&self, mode: u32, is_folder: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let before = mode;
        changes.iter().fold(mode, |mode, change| match *change {
            Change::Set(bits) => mode | bits,
            Change::Clear(bits) => mode & !bits,
            Change::Search(bits) if is_folder || before & 0o111 != 0 => mode | bits,
            Change::Search(_) => mode,
            Change::Copy { from, operator, to } => {
                let value = match from {
                    'u' => (mode >> 6) & 7,
                    'g' => (mode >> 3) & 7,
                    _ => mode & 7,
                };
                let set = (value * 0o111) & to;
                match operator {
                    '+' => mode | set,
                    '-' => mode & !set,
                    _ => (mode & !to) | set,
                }
            }
        })
    }
}

fn take(clause: &str, changes: &mut Vec<Change>, has_cleared: &mut bool) -> Option<()> {
    let end = clause.find(['+', '-', '='])?;
    let mut who = 0;
    for c in clause[..end].chars() {
        who |= match c {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o007,
            'a' => 0o6777,
            _ => return None,
        };
    }
    let mut rest = clause[end..].chars().peekable();
    while let Some(operator) = rest.next() {
        if !"+-=".contains(operator) {
            return None;
        }
        if operator == '=' {
            *has_cleared = false;
        }
        who &= !STICKY;
        // Who is not only the others, for whom these bits say nothing.
        let special = |who: u32| who == 0 || who & !0o007 != 0;
        let (mut bits, mut search) = (0, 0);
        while let Some(c) = rest.next_if(|c| !"+-=".contains(*c)) {
            match c {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                'X' if operator == '-' => bits |= 0o111,
                'X' => search = 0o111,
                's' if special(who) => bits |= SET_IDS,
                't' if special(who) => {
                    who |= STICKY;
                    bits |= STICKY;
                }
                's' | 't' => {}
                'u' | 'g' | 'o' => {
                    if bits != 0 {
                        add(changes, operator, who, bits);
                        bits = 0;
                    }
                    *has_cleared |= operator == '=';
                    if search != 0 {
                        changes.push(Change::Search(of(who, search)));
                        search = 0;
                    }
                    let to = if who == 0 { 0o777 } else { who & 0o777 };
                    changes.push(Change::Copy {
                        from: c,
                        operator,
                        to,
                    });
                }
                _ => return None,
            }
        }
        if bits != 0 || operator == '=' && !*has_cleared {
            *has_cleared |= operator == '=';
            add(changes, operator, who, bits);
        }
        if search != 0 {
            changes.push(Change::Search(of(who, search)));
        }
    }
    Some(())
}

fn of(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { who & bits }
}

fn add(changes: &mut Vec<Change>, operator: char, who: u32, bits: u32) {
    match operator {
        '+' => changes.push(Change::Set(of(who, bits))),
        '-' => changes.push(Change::Clear(of(who, bits))),
        _ => {
            // The sticky bit is only cleared where it is named.
            changes.push(Change::Clear(if who == 0 { SET_IDS | 0o777 } else { who }));
            changes.push(Change::Set(of(who, bits)));
        }
    }
}

/// What is set and cleared in a row counts by its last word: `u+x-x` clears, whatever comes between.
fn compressed(changes: &[Change]) -> Vec<Change> {
    let mut out = Vec::new();
    let (mut set, mut cleared, mut search) = (0, 0, 0);
    let flush = |out: &mut Vec<Change>, set: &mut u32, cleared: &mut u32, search: &mut u32| {
        let all = [
            Change::Clear(std::mem::take(cleared)),
            Change::Set(std::mem::take(set)),
            Change::Search(std::mem::take(search)),
        ];
        out.extend(all.into_iter().filter(|change| {
            !matches!(
                change,
                Change::Clear(0) | Change::Set(0) | Change::Search(0)
            )
        }));
    };
    for change in changes {
        match *change {
            Change::Clear(bits) => {
                cleared |= bits;
                set &= !bits;
                search &= !bits;
            }
            Change::Set(bits) => {
                set |= bits;
                cleared &= !bits;
                search &= !bits;
            }
            Change::Search(bits) => search |= bits & !set,
            copy @ Change::Copy { .. } => {
                flush(&mut out, &mut set, &mut cleared, &mut search);
                out.push(copy);
            }
        }
    }
    flush(&mut out, &mut set, &mut cleared, &mut search);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_changes_them() {
        for (text, before, folder, after) in [
            ("755", 0o600, false, 0o755),
            ("4711", 0o600, false, 0o4711),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a=r,u+w", 0o777, false, 0o644),
            ("go-rwx", 0o755, false, 0o700),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o600, true, 0o711),
            ("g=u", 0o640, false, 0o660),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("u+s,+t", 0o755, false, 0o5755),
            ("o+t,g+t", 0o755, false, 0o1755),
            ("o+t", 0o755, false, 0o755),
            ("=t", 0o2754, false, 0o3754),
            ("=", 0o7754, false, 0o1000),
            ("u=rw", 0o6754, false, 0o2654),
            ("u+x-x", 0o755, false, 0o655),
            ("+X,a-x", 0o644, true, 0o644),
        ] {
            let found = Chmod::parse(text).unwrap().apply(before, folder);
            assert_eq!(found, after, "{text} {before:o}: {found:o}");
        }
        for wrong in ["", "x", "u", "8", "17777", "z+x", "u+q"] {
            assert_eq!(Chmod::parse(wrong), None, "{wrong}");
        }
    }
}
