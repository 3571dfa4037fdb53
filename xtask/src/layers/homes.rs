//! Calls that have one home. Each has one right way and several that nearly work; what stands in several places differs where it
//! matters. What is left of earlier times is counted, and the count only goes down.

use super::source::{Token, tokens, without_tests};

/// A call by the last two names of its path, or by its name alone.
struct Call {
    module: Option<&'static str>,
    name: &'static str,
    /// Only where its result is dropped at once, as a statement of its own.
    detached: bool,
    why: &'static str,
    /// Crates that may.
    homes: &'static [&'static str],
}

const CALLS: &[Call] = &[
    Call {
        module: Some("fs"),
        name: "write",
        detached: false,
        why: "a crash leaves half of the file: kiln_fs::replace",
        homes: &["kiln-fs"],
    },
    Call {
        module: Some("fs"),
        name: "rename",
        detached: false,
        why: "without the syncs a crash leaves an empty file: kiln_fs::replace",
        homes: &["kiln-fs"],
    },
    Call {
        module: Some("libc"),
        name: "kill",
        detached: false,
        why: "a pid is given again to another process: kiln_fs::Process::signal",
        homes: &[],
    },
    Call {
        module: None,
        name: "kill_process",
        detached: false,
        why: "a pid is given again to another process: kiln_fs::Process::signal",
        homes: &[],
    },
    Call {
        module: Some("tokio"),
        name: "spawn",
        detached: true,
        why: "nobody hears of its panic, and nobody ends it: keep the handle, in a JoinSet or by name",
        homes: &[],
    },
    Call {
        module: None,
        name: "unbounded_channel",
        detached: false,
        why: "a reader that stops makes it grow without end: give it a bound, and say what happens when it is full",
        homes: &[],
    },
    Call {
        module: Some("SystemTime"),
        name: "now",
        detached: false,
        why: "it steps when the clock is set: kiln_fs::clock, and a deadline by its monotonic one",
        homes: &["kiln-fs"],
    },
];

/// How many of each a crate still has. No new one comes in, and what is taken out is taken off.
const LEFT: &[(&str, &str, usize)] = &[
    ("kiln-bake", "now", 4),
    ("kiln-bake", "rename", 1),
    // Files of a step's own tree, which are synced with its layer.
    ("kiln-bake", "write", 7),
    // A crash point kills its own process.
    ("kiln-daemon", "kill_process", 1),
    ("kiln-daemon", "spawn", 8),
    ("kiln-daemon", "unbounded_channel", 1),
    // To its own group, as the first process of it.
    ("kiln-engine", "kill", 1),
    ("kiln-engine", "rename", 2),
    // Nearly all are the kernel's files, in /sys and /proc.
    ("kiln-engine", "write", 21),
    ("kiln-git", "rename", 1),
    ("kiln-oci", "now", 5),
    ("kiln-oci", "rename", 3),
    ("kiln-proxy", "spawn", 1),
    ("kiln-proxy", "unbounded_channel", 3),
    ("kiln-supervise", "rename", 1),
];

/// Tools for those who work on kiln: none of it runs where somebody's services do.
const TOOLS: &[&str] = &["xtask", "kiln-fuzz"];

/// The lines of the calls in one file, each with the call's name and the rule that it breaks.
pub(super) fn calls(package: &str, text: &str) -> Vec<(usize, &'static str, String)> {
    if TOOLS.contains(&package) {
        return Vec::new();
    }
    let tokens = without_tests(tokens(text));
    let ident = |index: usize| match tokens.get(index) {
        Some((_, Token::Ident(word))) => Some(word.as_str()),
        _ => None,
    };
    let mut found = Vec::new();
    for (index, (line, _)) in tokens.iter().enumerate() {
        let Some(word) = ident(index) else { continue };
        for call in CALLS.iter().filter(|call| call.name == word) {
            let is_called = is_punct(&tokens, index + 1, '(');
            let start = match call.module {
                // `module :: name`, of which each colon is a token.
                Some(module) => match index.checked_sub(3) {
                    Some(start) if ident(start) == Some(module) => start,
                    _ => continue,
                },
                None => index,
            };
            let is_statement = start == 0
                || [';', '{', '}']
                    .iter()
                    .any(|end| is_punct(&tokens, start - 1, *end));
            if is_called && (!call.detached || is_statement) && !call.homes.contains(&package) {
                let name = match call.module {
                    Some(module) => format!("{module}::{}", call.name),
                    None => call.name.to_owned(),
                };
                found.push((*line, call.name, format!("no `{name}` here: {}", call.why)));
            }
        }
    }
    found
}

fn is_punct(tokens: &[(usize, Token)], index: usize, wanted: char) -> bool {
    matches!(tokens.get(index), Some((_, Token::Punct(found))) if *found == wanted)
}

/// How many of this call a crate may still have.
pub(super) fn left(package: &str, name: &str) -> usize {
    LEFT.iter()
        .find(|(of, call, _)| *of == package && *call == name)
        .map_or(0, |(_, _, count)| *count)
}

/// What a crate is allowed beyond what it has; `count` says how many of a call it has.
pub(super) fn outdated(package: &str, count: impl Fn(&str) -> usize) -> Vec<String> {
    LEFT.iter()
        .filter(|(of, name, left)| *of == package && count(name) < *left)
        .map(|(_, name, left)| {
            format!(
                "{package}: {left} calls of `{name}` are allowed, and {} are left: lower the number in xtask/src/layers/homes.rs",
                count(name)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(package: &str, text: &str) -> Vec<&'static str> {
        calls(package, text)
            .into_iter()
            .map(|(_, name, _)| name)
            .collect()
    }

    #[test]
    fn a_call_is_found_outside_of_its_home() {
        let text = "fn f() { std::fs::write(path, bytes)?; fs::rename(a, b)?; out.write(bytes); }";
        assert_eq!(names("kiln-oci", text), ["write", "rename"]);
        assert!(names("kiln-fs", text).is_empty());
        assert!(names("xtask", text).is_empty());
        let tests = format!("#[cfg(test)] mod tests {{ {text} }}");
        assert!(names("kiln-oci", &tests).is_empty());
        assert_eq!(names("kiln", "let now = SystemTime::now();"), ["now"]);
        assert!(names("kiln", "let now = rollout::now();").is_empty());
    }

    #[test]
    fn a_task_whose_handle_is_kept_is_not_detached() {
        assert_eq!(
            names("kiln-daemon", "fn f() { tokio::spawn(work()); }"),
            ["spawn"]
        );
        assert!(names("kiln-daemon", "let task = tokio::spawn(work());").is_empty());
        assert!(names("kiln-daemon", "tasks.push(tokio::spawn(work()));").is_empty());
    }
}
