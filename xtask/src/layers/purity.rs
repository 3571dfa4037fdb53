//! Names that a pure crate may not use, and the keyword that only the engine may.

use super::source::{Token, tokens, without_tests};

/// Modules of the standard library that reach out of the process, or make order depend on chance.
const BANNED_MODULES: &[(&str, &str)] = &[
    ("fs", "files come in through an argument"),
    ("env", "the environment is read at the edge"),
    ("process", "a pure crate starts and ends nothing"),
    ("thread", "a pure crate runs where it is called"),
    ("os", "a pure crate knows no operating system"),
];

/// Of `std::net` the types are values like any other; all the rest opens sockets.
const NET_TYPES: &[&str] = &[
    "AddrParseError",
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
];

const BANNED_NAMES: &[(&str, &str)] = &[
    ("SystemTime", "`now` is an argument"),
    ("Instant", "`now` is an argument"),
    ("HashMap", "its order is chance: use BTreeMap"),
    ("HashSet", "its order is chance: use BTreeSet"),
];

/// Line and broken rule, in order.
pub(super) fn impure_names(text: &str) -> Vec<(usize, String)> {
    let tokens = without_tests(tokens(text));
    let mut found = Vec::new();
    for (index, (line, token)) in tokens.iter().enumerate() {
        let Token::Ident(word) = token else { continue };
        if let Some((name, why)) = BANNED_NAMES.iter().find(|(name, _)| name == word) {
            found.push((*line, format!("a pure crate names no `{name}`: {why}")));
        }
        if word == "std" {
            let mut paths = Vec::new();
            expand(&tokens, index + 1, &mut Vec::new(), *line, &mut paths);
            found.extend(
                paths
                    .into_iter()
                    .filter_map(|(line, path)| Some((line, path_rule(&path)?))),
            );
        }
    }
    found.sort();
    found.dedup();
    found
}

/// `unsafe` in any form, and an `allow` of it.
pub(super) fn unsafe_code(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (index, (line, token)) in tokens.iter().enumerate() {
        let Token::Ident(word) = token else { continue };
        let allowed = word == "unsafe_code"
            && index >= 2
            && matches!(&tokens[index - 2].1, Token::Ident(word) if word == "allow" || word == "expect");
        if word == "unsafe" || allowed {
            found.push((*line, "unsafe code lives in kiln-engine alone".to_owned()));
        }
    }
    found
}

/// All paths that begin at `index` with `::`, groups unfolded. Returns where the path ends.
fn expand(
    tokens: &[(usize, Token)],
    index: usize,
    path: &mut Vec<String>,
    line: usize,
    paths: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let punct =
        |index: usize, c: char| matches!(tokens.get(index), Some((_, Token::Punct(p))) if *p == c);
    if !(punct(index, ':') && punct(index + 1, ':')) {
        paths.push((line, path.clone()));
        return index;
    }
    match tokens.get(index + 2) {
        Some((line, Token::Ident(word))) => {
            path.push(word.clone());
            let end = expand(tokens, index + 3, path, *line, paths);
            path.pop();
            end
        }
        Some((line, Token::Punct('*'))) => {
            path.push("*".to_owned());
            paths.push((*line, path.clone()));
            path.pop();
            index + 3
        }
        Some((_, Token::Punct('{'))) => {
            let mut next = index + 3;
            while next < tokens.len() && !punct(next, '}') {
                match &tokens[next] {
                    (line, Token::Ident(word)) => {
                        path.push(word.clone());
                        next = expand(tokens, next + 1, path, *line, paths);
                        path.pop();
                    }
                    (line, Token::Punct('*')) => {
                        path.push("*".to_owned());
                        paths.push((*line, path.clone()));
                        path.pop();
                        next += 1;
                    }
                    (_, Token::Punct(_)) => next += 1,
                }
                // `name as other`
                while next < tokens.len() && !punct(next, ',') && !punct(next, '}') {
                    next += 1;
                }
                if punct(next, ',') {
                    next += 1;
                }
            }
            next + 1
        }
        _ => {
            paths.push((line, path.clone()));
            index + 2
        }
    }
}

/// The rule that a path below `std` breaks.
fn path_rule(path: &[String]) -> Option<String> {
    let module = path.first()?;
    if let Some((name, why)) = BANNED_MODULES.iter().find(|(name, _)| name == module) {
        return Some(format!("a pure crate names no `std::{name}`: {why}"));
    }
    let whole = format!("std::{}", path.join("::"));
    match (module.as_str(), path.get(1)) {
        ("net", Some(name)) if NET_TYPES.contains(&name.as_str()) => None,
        ("net", _) => Some(format!(
            "a pure crate names no `{whole}`: of std::net only the address types are values"
        )),
        ("io", Some(name)) if ["stdin", "stdout", "stderr"].contains(&name.as_str()) => Some(
            format!("a pure crate names no `{whole}`: text goes out through an argument"),
        ),
        ("*", _) => Some("a pure crate names no `std::*`: say what is used".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<(usize, String)> {
        impure_names(text)
            .into_iter()
            .map(|(line, rule)| {
                let name = rule.split('`').nth(1).unwrap_or_default();
                (line, name.to_owned())
            })
            .collect()
    }

    #[test]
    fn what_reaches_out_of_the_process_is_found() {
        for (text, line, name) in [
            ("use std::fs;", 1, "std::fs"),
            ("\nuse std::{\n  fmt,\n  fs::File,\n};", 4, "std::fs"),
            ("fn f() { std::env::var(\"X\"); }", 1, "std::env"),
            ("use ::std::process::Command;", 1, "std::process"),
            ("use std::net::TcpStream;", 1, "std::net::TcpStream"),
            (
                "use std::net::{IpAddr, UdpSocket};",
                1,
                "std::net::UdpSocket",
            ),
            ("use std::net;", 1, "std::net"),
            ("use std::{net::*, fmt};", 1, "std::net::*"),
            ("std::thread::spawn(|| ());", 1, "std::thread"),
            ("let t: Instant = now;", 1, "Instant"),
            ("use std::time::{Duration, SystemTime};", 1, "SystemTime"),
            ("use std::collections::HashMap;", 1, "HashMap"),
            ("let x: std::collections::HashSet<u8>;", 1, "HashSet"),
            ("std::io::stdout();", 1, "std::io::stdout"),
        ] {
            assert_eq!(broken(text), [(line, name.to_owned())], "{text}");
        }
    }

    #[test]
    fn values_tests_comments_and_strings_are_no_violation() {
        for text in [
            "use std::net::{IpAddr, Ipv4Addr, SocketAddr};",
            "use std::{collections::{BTreeMap, BTreeSet as Set}, time::Duration};",
            "// std::fs\n/* Instant */ const X: &str = \"std::env HashMap\";",
            "#[cfg(test)]\nmod tests { use std::fs; use std::time::Instant; }",
            "let environment = specification.environment;",
        ] {
            assert_eq!(broken(text), [], "{text}");
        }
    }

    #[test]
    fn unsafe_is_found_in_every_form() {
        assert_eq!(unsafe_code("fn f() {\n unsafe { g() } }").len(), 1);
        assert_eq!(unsafe_code("#![allow(unsafe_code)]").len(), 1);
        assert_eq!(
            unsafe_code("#![deny(unsafe_code)] // unsafe\n\"unsafe\""),
            []
        );
    }
}
