//! Circles between the top-level modules of a crate. Modules point one way: what two of them need of each other goes into a third, below
//! both. Otherwise none of them can be read, tested or moved without the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::source::{Token, without_tests};

/// Which top-level modules each of them names.
#[derive(Default)]
pub(super) struct Modules(BTreeMap<String, BTreeSet<String>>);

impl Modules {
    /// Of a crate whose source files are these, by their paths below `src`.
    pub(super) fn of<'a>(files: impl Iterator<Item = (&'a Path, Vec<(usize, Token)>)>) -> Self {
        let files: Vec<_> = files
            .filter_map(|(path, tokens)| Some((module_path(path)?, without_tests(tokens))))
            .collect();
        let mut modules = Self::default();
        for (path, _) in &files {
            modules.0.entry(path[0].clone()).or_default();
        }
        let known: BTreeSet<String> = modules.0.keys().cloned().collect();
        for (path, tokens) in files {
            let named = named_from_root(&tokens, path.len())
                .into_iter()
                .filter(|name| known.contains(name) && *name != path[0]);
            modules.0.entry(path[0].clone()).or_default().extend(named);
        }
        modules
    }

    /// A circle, such as `a -> b -> a`, if there is one.
    pub(super) fn circle(&self) -> Option<String> {
        let mut done = BTreeSet::new();
        self.0
            .keys()
            .find_map(|name| self.circle_from(name, &mut Vec::new(), &mut done))
    }

    fn circle_from<'a>(
        &'a self,
        name: &'a str,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<String> {
        if let Some(begin) = path.iter().position(|one| *one == name) {
            return Some(format!("{} -> {name}", path[begin..].join(" -> ")));
        }
        if !done.insert(name) {
            return None;
        }
        path.push(name);
        let found = self
            .0
            .get(name)
            .into_iter()
            .flatten()
            .find_map(|next| self.circle_from(next, path, done));
        path.pop();
        found
    }
}

/// `a/b.rs` and `a/b/mod.rs` are `[a, b]`. None: the root of the crate, which declares them all, or a program of its own.
fn module_path(file: &Path) -> Option<Vec<String>> {
    let mut parts: Vec<String> = file
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    let is_root = parts.len() == 1 && ["lib", "main"].contains(&parts[0].as_str());
    let is_program = parts.first().is_some_and(|first| first == "bin");
    (!parts.is_empty() && !is_root && !is_program).then_some(parts)
}

/// The names right below the root that a module at `depth` writes: by `crate::` or by as many `super::`.
fn named_from_root(tokens: &[(usize, Token)], depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut index = 0;
    while index < tokens.len() {
        let begin = index;
        index += 1;
        let after = if is_word(tokens, begin, "crate") {
            begin + 1
        } else if is_word(tokens, begin, "super") {
            let mut at = begin;
            let mut up = 0;
            while is_word(tokens, at, "super") {
                up += 1;
                at += 1;
                if up < depth && is_path_sign(tokens, at) {
                    at += 2;
                }
            }
            index = at;
            if up != depth {
                continue;
            }
            at
        } else {
            continue;
        };
        if !is_path_sign(tokens, after) {
            continue;
        }
        match tokens.get(after + 2) {
            Some((_, Token::Ident(name))) => {
                found.insert(name.clone());
            }
            Some((_, Token::Punct('{'))) => found.extend(first_names(&tokens[after + 3..])),
            _ => {}
        }
    }
    found
}

/// Of `a::b, c::{d, e}, f}` the names `a`, `c` and `f`.
fn first_names(tokens: &[(usize, Token)]) -> Vec<String> {
    let (mut found, mut depth, mut is_first) = (Vec::new(), 0, true);
    for (_, token) in tokens {
        match token {
            Token::Punct('{') => depth += 1,
            Token::Punct('}') if depth == 0 => break,
            Token::Punct('}') => depth -= 1,
            Token::Punct(',') if depth == 0 => {
                is_first = true;
                continue;
            }
            Token::Ident(name) if is_first => found.push(name.clone()),
            Token::Ident(_) | Token::Punct(_) => {}
        }
        is_first = false;
    }
    found
}

fn is_word(tokens: &[(usize, Token)], index: usize, word: &str) -> bool {
    matches!(tokens.get(index), Some((_, Token::Ident(found))) if found == word)
}

fn is_path_sign(tokens: &[(usize, Token)], index: usize) -> bool {
    let is_colon = |index| matches!(tokens.get(index), Some((_, Token::Punct(':'))));
    is_colon(index) && is_colon(index + 1)
}

#[cfg(test)]
mod tests {
    use super::super::source::tokens;
    use super::*;

    fn circle(files: &[(&str, &str)]) -> Option<String> {
        let files = files
            .iter()
            .map(|(path, text)| (Path::new(*path), tokens(text)));
        Modules::of(files).circle()
    }

    #[test]
    fn modules_that_need_each_other_are_found_however_they_say_it() {
        let b = ("b.rs", "use crate::a::A;");
        for (path, text) in [
            ("a.rs", "use crate::b::B;"),
            ("a.rs", "use crate::{c, b::{B, D}};"),
            ("a.rs", "use crate::{c::{d, e}, b};"),
            ("a.rs", "fn f() { crate::b::f() }"),
            ("a.rs", "use super::b::B;"),
            ("a/mod.rs", "use super::b;"),
            ("a/inner.rs", "use super::super::b::B;"),
        ] {
            let found = circle(&[(path, text), b, ("c.rs", "")]);
            assert_eq!(found.as_deref(), Some("a -> b -> a"), "{path}: {text}");
        }
        let long = [
            ("a.rs", "use crate::b;"),
            ("b.rs", "use crate::c;"),
            ("c/d.rs", "use crate::a;"),
        ];
        assert_eq!(circle(&long).as_deref(), Some("a -> b -> c -> a"));
    }

    #[test]
    fn one_way_is_no_circle() {
        for (path, text) in [
            ("a.rs", "use b::B; use other::crate_b; // use crate::b"),
            ("a.rs", "#[cfg(test)] mod tests { use crate::b::B; }"),
            ("a/inner.rs", "use super::b::B;"),
            ("lib.rs", "mod a; mod b; pub use crate::b::B;"),
            ("a.rs", "use crate::{c::b, d::{b}};"),
        ] {
            let b = ("b.rs", "use crate::a::A;");
            assert_eq!(circle(&[(path, text), b, ("a/x.rs", "")]), None, "{text}");
        }
    }
}
