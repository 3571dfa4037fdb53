//! Rust source as far as the layer rules need it: code without comments, strings and tests, as tokens.

use std::path::{Path, PathBuf};

use super::LayersError;

/// All `.rs` files below a folder, in order; none where the folder is not there.
pub(super) fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, LayersError> {
    let read = |source| LayersError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        if entry.file_type().map_err(read)?.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the file, or one that it is a part of, is declared as `#[cfg(test)] mod NAME;`.
pub(super) fn is_test_module(path: &Path, package: &Path) -> Result<bool, LayersError> {
    let src = package.join("src");
    let mut current = path.to_owned();
    loop {
        let Some((name, parents)) = declared_in(&current) else {
            return Ok(false);
        };
        if current.parent() == Some(&src) && ["lib", "main"].contains(&name.as_str()) {
            return Ok(false);
        }
        let Some(parent) = parents.into_iter().find(|parent| parent.is_file()) else {
            return Ok(false);
        };
        let text = std::fs::read_to_string(&parent).map_err(|source| LayersError::Read {
            path: parent.clone(),
            source,
        })?;
        if test_modules(&text).contains(&name) {
            return Ok(true);
        }
        current = parent;
    }
}

/// A module's name and the files that may declare it.
fn declared_in(path: &Path) -> Option<(String, Vec<PathBuf>)> {
    let stem = path.file_stem()?.to_str()?.to_owned();
    let folder = path.parent()?;
    let (name, outer) = if stem == "mod" {
        (folder.file_name()?.to_str()?.to_owned(), folder.parent()?)
    } else {
        (stem, folder)
    };
    let mut parents = vec![
        outer.join("mod.rs"),
        outer.join("lib.rs"),
        outer.join("main.rs"),
    ];
    if let (Some(above), Some(folder)) = (outer.parent(), outer.file_name()) {
        parents.push(above.join(folder).with_extension("rs"));
    }
    parents.retain(|parent| parent != path);
    Some((name, parents))
}

/// An identifier, or one other character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Ident(String),
    Punct(char),
}

/// The tokens of a file with their lines, counted from 1; comments and literals are left out.
pub(super) fn tokens(text: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied();
    let mut tokens = Vec::new();
    let (mut index, mut line) = (0, 1);
    while let Some(c) = at(index) {
        let start = index;
        match c {
            '/' if at(index + 1) == Some('/') => {
                while at(index).is_some_and(|c| c != '\n') {
                    index += 1;
                }
            }
            '/' if at(index + 1) == Some('*') => index = block_comment(&chars, index),
            '"' => index = quoted(&chars, index),
            '\'' => index = char_or_lifetime(&chars, index),
            'r' | 'b' | 'c' if literal_prefix(&chars, index).is_some() => {
                let (quote, hashes, raw) =
                    literal_prefix(&chars, index).unwrap_or((index, 0, false));
                index = if raw {
                    raw_string(&chars, quote, hashes)
                } else if at(quote) == Some('\'') {
                    char_or_lifetime(&chars, quote)
                } else {
                    quoted(&chars, quote)
                };
            }
            c if c.is_alphabetic() || c == '_' => {
                while at(index).is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    index += 1;
                }
                let word = chars[start..index].iter().collect();
                tokens.push((line, Token::Ident(word)));
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Punct(c)));
                }
                index += 1;
            }
        }
        line += chars[start..index].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// Rust's block comments nest.
fn block_comment(chars: &[char], start: usize) -> usize {
    let (mut index, mut depth) = (start, 0);
    while index < chars.len() {
        match (chars[index], chars.get(index + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                index += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                index += 2;
                if depth == 0 {
                    return index;
                }
            }
            _ => index += 1,
        }
    }
    index
}

fn quoted(chars: &[char], start: usize) -> usize {
    let mut index = start + 1;
    while index < chars.len() {
        match chars[index] {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    chars.len()
}

fn char_or_lifetime(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => {
            let mut index = start + 3;
            while chars.get(index).is_some_and(|c| *c != '\'') {
                index += 1;
            }
            (index + 1).min(chars.len())
        }
        (Some(_), Some('\'')) => start + 3,
        // A lifetime: its name is read as an identifier, which no rule names.
        _ => start + 1,
    }
}

/// Of `r"`, `r#"`, `b"`, `br#"`, `c"`, `b'` …: where the quote is, how many hashes, and whether it is raw.
fn literal_prefix(chars: &[char], start: usize) -> Option<(usize, usize, bool)> {
    let mut index = start;
    if matches!(chars.get(index), Some('b' | 'c')) {
        index += 1;
    }
    let raw = chars.get(index) == Some(&'r');
    if raw {
        index += 1;
    }
    let mut hashes = 0;
    while raw && chars.get(index) == Some(&'#') {
        hashes += 1;
        index += 1;
    }
    match chars.get(index) {
        Some('"') => Some((index, hashes, raw)),
        Some('\'') if !raw && index > start && chars[start] == 'b' => Some((index, 0, false)),
        _ => None,
    }
}

fn raw_string(chars: &[char], quote: usize, hashes: usize) -> usize {
    let mut index = quote + 1;
    while index < chars.len() {
        if chars[index] == '"'
            && chars[index + 1..].iter().take_while(|c| **c == '#').count() >= hashes
        {
            return index + 1 + hashes;
        }
        index += 1;
    }
    index
}

/// The tokens without the items that are compiled for tests alone.
pub(super) fn without_tests(tokens: Vec<(usize, Token)>) -> Vec<(usize, Token)> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut index = 0;
    while index < tokens.len() {
        match cfg_test(&tokens, index) {
            Some(after) => index = item_end(&tokens, after),
            None => {
                kept.push(tokens[index].clone());
                index += 1;
            }
        }
    }
    kept
}

/// The names of the modules that a file declares for tests alone, in files of their own.
fn test_modules(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut names = Vec::new();
    for index in 0..tokens.len() {
        if let Some(after) = cfg_test(&tokens, index)
            && let [
                (_, Token::Ident(keyword)),
                (_, Token::Ident(name)),
                (_, Token::Punct(';')),
                ..,
            ] = &tokens[after..]
            && keyword == "mod"
        {
            names.push(name.clone());
        }
    }
    names
}

/// Where the tokens after `#[cfg(test)]` begin, when that is what stands at `index`.
fn cfg_test(tokens: &[(usize, Token)], index: usize) -> Option<usize> {
    let expected = ["#", "[", "cfg", "(", "test", ")", "]"];
    let found = tokens.get(index..index + expected.len())?;
    found
        .iter()
        .zip(expected)
        .all(|((_, token), expected)| match token {
            Token::Ident(word) => word == expected,
            Token::Punct(c) => expected.len() == 1 && expected.starts_with(*c),
        })
        .then_some(index + expected.len())
}

/// Where an item ends: at its `;` or its closing brace, outside of all brackets.
fn item_end(tokens: &[(usize, Token)], start: usize) -> usize {
    let mut depth = 0_i32;
    for (index, (_, token)) in tokens.iter().enumerate().skip(start) {
        match token {
            Token::Punct('{' | '(' | '[') => depth += 1,
            Token::Punct(c @ ('}' | ')' | ']')) => {
                depth -= 1;
                if depth == 0 && *c == '}' {
                    return index + 1;
                }
            }
            Token::Punct(';') if depth == 0 => return index + 1,
            Token::Ident(_) | Token::Punct(_) => {}
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        without_tests(tokens(text))
            .into_iter()
            .filter_map(|(_, token)| match token {
                Token::Ident(word) => Some(word),
                Token::Punct(_) => None,
            })
            .collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(
            words(
                r##"a /* b /* c */ d */ e // f
                "g \" h" r#"i " j"# b"k" 'l' '\'' '\u{1f600}' b'm' br"n" o"##
            ),
            ["a", "e", "o"]
        );
        assert_eq!(
            words("fn x<'static_>(r: &'a str) {}"),
            ["fn", "x", "static_", "r", "a", "str"]
        );
    }

    #[test]
    fn lines_are_counted_through_literals() {
        let tokens = tokens("a\n\"x\ny\"\n/* \n */ b");
        assert_eq!(tokens[0], (1, Token::Ident("a".to_owned())));
        assert_eq!(tokens[1], (5, Token::Ident("b".to_owned())));
    }

    #[test]
    fn what_is_for_tests_alone_is_left_out() {
        assert_eq!(
            words("a #[cfg(test)] mod tests { fn b() { c[0]; } } d #[cfg(test)] use e::{f, g}; h"),
            ["a", "d", "h"]
        );
        assert_eq!(words("#[cfg(not(test))] a"), ["cfg", "not", "test", "a"]);
        assert_eq!(
            test_modules("#[cfg(test)]\nmod scenarios;\nmod step;"),
            ["scenarios"]
        );
    }

    #[test]
    fn a_module_of_tests_in_its_own_file_is_known_as_one() {
        let package = std::env::temp_dir().join(format!("xtask-source-{}", std::process::id()));
        let nested = package.join("src/step");
        std::fs::create_dir_all(&nested).unwrap();
        std::fs::write(package.join("src/lib.rs"), "mod step;").unwrap();
        std::fs::write(
            package.join("src/step.rs"),
            "mod inner;\n#[cfg(test)] mod tests;",
        )
        .unwrap();
        std::fs::write(nested.join("inner.rs"), "").unwrap();
        std::fs::write(nested.join("tests.rs"), "").unwrap();
        let judged: Vec<bool> = [
            "src/lib.rs",
            "src/step.rs",
            "src/step/inner.rs",
            "src/step/tests.rs",
        ]
        .iter()
        .map(|file| is_test_module(&package.join(file), &package).unwrap())
        .collect();
        std::fs::remove_dir_all(&package).unwrap();
        assert_eq!(judged, [false, false, false, true]);
    }
}
