//! `--chmod`: octal, or symbolic as of chmod(1).

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clause {
    /// 0o700 for `u`, 0o070 for `g`, 0o007 for `o`.
    who: u32,
    actions: Vec<(char, String)>,
}

impl Chmod {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok()?;
            return (mode <= 0o7777).then_some(Self::Octal(mode));
        }
        text.split(',')
            .map(clause)
            .collect::<Option<_>>()
            .map(Self::Symbolic)
    }

    pub(super) fn apply(&self, mode: u32, is_folder: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(clauses) => clauses.iter().fold(mode, |mode, clause| {
                clause.actions.iter().fold(mode, |mode, (operator, what)| {
                    change(mode, clause.who, *operator, what, is_folder)
                })
            }),
        }
    }
}

fn clause(text: &str) -> Option<Clause> {
    let end = text.find(['+', '-', '='])?;
    let mut who = 0;
    for c in text[..end].chars() {
        who |= match c {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            'a' => 0o777,
            _ => return None,
        };
    }
    if who == 0 {
        who = 0o777;
    }
    let mut actions: Vec<(char, String)> = Vec::new();
    for c in text[end..].chars() {
        match (c, actions.last_mut()) {
            ('+' | '-' | '=', _) => actions.push((c, String::new())),
            ('r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o', Some((_, what))) => what.push(c),
            _ => return None,
        }
    }
    Some(Clause { who, actions })
}

fn change(mode: u32, who: u32, operator: char, what: &str, is_folder: bool) -> u32 {
    let mut bits = 0;
    for c in what.chars() {
        bits |= match c {
            'r' => 0o444 & who,
            'w' => 0o222 & who,
            'x' => 0o111 & who,
            'X' if is_folder || mode & 0o111 != 0 => 0o111 & who,
            's' => {
                (if who & 0o700 != 0 { 0o4000 } else { 0 })
                    | (if who & 0o070 != 0 { 0o2000 } else { 0 })
            }
            // Only for others it says nothing.
            't' if who & 0o770 != 0 => 0o1000,
            'u' => (((mode >> 6) & 7) * 0o111) & who,
            'g' => (((mode >> 3) & 7) * 0o111) & who,
            'o' => ((mode & 7) * 0o111) & who,
            _ => 0,
        };
    }
    match operator {
        '+' => mode | bits,
        '-' => mode & !bits,
        _ => {
            let special = (if who & 0o700 != 0 { 0o4000 } else { 0 })
                | (if who & 0o070 != 0 { 0o2000 } else { 0 });
            // A folder keeps its set-id bits unless they are named, as GNU has it.
            let cleared = if is_folder { who } else { who | special };
            mode & !cleared | bits
        }
    }
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
        ] {
            let found = Chmod::parse(text).unwrap().apply(before, folder);
            assert_eq!(found, after, "{text} {before:o}: {found:o}");
        }
        for wrong in ["", "x", "u", "8", "17777", "z+x", "u+q"] {
            assert_eq!(Chmod::parse(wrong), None, "{wrong}");
        }
    }
}
