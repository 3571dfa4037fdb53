//! Patterns: of paths (`.dockerignore`, COPY) and of a variable's value (`${name#pattern}`).

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `.*`
    Anything,
    /// `(.*/)?`
    Folders,
    /// `[^/]*`
    Star,
    /// `[^/]`
    One,
    /// Any one character.
    Any,
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
    Is(char),
}

fn class(chars: &[char], at: &mut usize) -> Option<Token> {
    let mut position = *at;
    let not = matches!(chars.get(position), Some('^' | '!'));
    if not {
        position += 1;
    }
    let mut ranges = Vec::new();
    loop {
        let one = |position: &mut usize| {
            let mut c = *chars.get(*position)?;
            if c == '\\' {
                *position += 1;
                c = *chars.get(*position)?;
            }
            *position += 1;
            Some(c)
        };
        if chars.get(position) == Some(&']') && !ranges.is_empty() {
            *at = position + 1;
            return Some(Token::Class { not, ranges });
        }
        let low = one(&mut position)?;
        let mut high = low;
        if chars.get(position) == Some(&'-') && chars.get(position + 1) != Some(&']') {
            position += 1;
            high = one(&mut position)?;
        }
        ranges.push((low, high));
    }
}

/// A pattern of paths. None where a `[` is not closed or an escape has nothing to escape.
fn tokens(pattern: &str, deep: bool) -> Option<Vec<Token>> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = chars.get(at).copied() {
        at += 1;
        match c {
            '*' if deep && chars.get(at) == Some(&'*') => {
                at += 1;
                if chars.get(at) == Some(&'/') {
                    at += 1;
                }
                tokens.push(if at == chars.len() {
                    Token::Anything
                } else {
                    Token::Folders
                });
            }
            '*' => tokens.push(Token::Star),
            '?' => tokens.push(Token::One),
            '[' => tokens.push(class(&chars, &mut at)?),
            '\\' => {
                tokens.push(Token::Is(*chars.get(at)?));
                at += 1;
            }
            c => tokens.push(Token::Is(c)),
        }
    }
    Some(tokens)
}

fn fits(tokens: &[Token], text: &[char]) -> bool {
    reached(tokens, text)[text.len()]
}

/// For each length, whether the beginning of `text` that is as long fits.
fn reached(tokens: &[Token], text: &[char]) -> Vec<bool> {
    // One row of a table over the text's positions for each token: no pattern can take longer than its size.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; text.len() + 1];
        match token {
            Token::Anything | Token::Folders | Token::Star => {
                let mut open = false;
                for at in 0..=text.len() {
                    let here = reached[at];
                    open |= here;
                    next[at] = match token {
                        Token::Folders => here || open && at > 0 && text[at - 1] == '/',
                        _ => open,
                    };
                    if *token == Token::Star && text.get(at) == Some(&'/') {
                        open = false;
                    }
                }
            }
            single => {
                for (at, c) in text.iter().enumerate() {
                    next[at + 1] = reached[at]
                        && match single {
                            Token::One => *c != '/',
                            Token::Any => true,
                            Token::Class { not, ranges } => {
                                let within = ranges.iter().any(|(low, high)| low <= c && c <= high);
                                *c != '/' && within != *not
                            }
                            Token::Is(wanted) => wanted == c,
                            Token::Anything | Token::Folders | Token::Star => false,
                        };
                }
            }
        }
        reached = next;
    }
    reached
}

/// A pattern of whole paths, relative and with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<Token>);

impl PathPattern {
    /// As `.dockerignore` has them: `**` is any number of folders.
    pub fn deep(pattern: &str) -> Option<Self> {
        tokens(pattern, true).map(Self)
    }

    /// As Go's `filepath.Match` has them.
    pub fn flat(pattern: &str) -> Option<Self> {
        tokens(pattern, false).map(Self)
    }

    pub fn fits(&self, path: &str) -> bool {
        fits(&self.0, &path.chars().collect::<Vec<_>>())
    }
}

/// Whether a source of COPY is a pattern.
pub fn has_wildcards(path: &str) -> bool {
    let mut escaped = false;
    path.chars().any(|c| {
        let wild = !escaped && matches!(c, '*' | '?' | '[');
        escaped = c == '\\' && !escaped;
        wild
    })
}

fn value_tokens(pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Anything,
            '?' => Token::Any,
            '\\' => Token::Is(chars.next().unwrap_or('\\')),
            c => Token::Is(c),
        });
    }
    tokens
}

/// `value` without what of its start (or end) fits, the shortest or the longest such part.
pub(super) fn trim(value: &str, pattern: &str, from_start: bool, longest: bool) -> String {
    let mut tokens = value_tokens(pattern);
    let mut chars: Vec<char> = value.chars().collect();
    if !from_start {
        // No token looks to one side.
        tokens.reverse();
        chars.reverse();
    }
    let fits = reached(&tokens, &chars);
    let length = if longest {
        fits.iter().rposition(|fits| *fits)
    } else {
        fits.iter().position(|fits| *fits)
    };
    chars.drain(..length.unwrap_or(0));
    if !from_start {
        chars.reverse();
    }
    chars.into_iter().collect()
}

/// `value` with the first (or every) part that fits, the longest at its place, replaced.
pub(super) fn replace(value: &str, pattern: &str, with: &str, all: bool) -> String {
    let tokens = value_tokens(pattern);
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let fits = reached(&tokens, &chars[at..]);
        match fits.iter().rposition(|fits| *fits) {
            Some(length @ 1..) => {
                out.push_str(with);
                at += length;
                if !all {
                    break;
                }
            }
            _ => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out.extend(&chars[at..]);
    out
}

/// What a `.dockerignore` leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<(bool, PathPattern)>,
}

impl Ignore {
    /// An error is the number of the line, from 1, whose pattern is malformed.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut ignore = Self::default();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            ignore.add(line).ok_or(index + 1)?;
        }
        Ok(ignore)
    }

    /// Adds a pattern; none where it is malformed. An empty one is no rule.
    pub fn add(&mut self, line: &str) -> Option<()> {
        let line = line.trim();
        let (takes_back, pattern) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if pattern.is_empty() {
            return line.is_empty().then_some(());
        }
        let clean = clean(pattern);
        self.rules.push((takes_back, PathPattern::deep(&clean)?));
        Some(())
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether `path` is left out: the last rule that fits it, or a folder above it, decides.
    pub fn ignores(&self, path: &str) -> bool {
        let mut ignored = false;
        for (takes_back, pattern) in &self.rules {
            if ignored == *takes_back {
                let above = path.match_indices('/').map(|(at, _)| &path[..at]);
                if above.chain([path]).any(|path| pattern.fits(path)) {
                    ignored = !takes_back;
                }
            }
        }
        ignored
    }

    /// Whether `path` as somebody writes it (`./a/`, `/a`) is left out.
    pub fn names(&self, path: &str) -> bool {
        !self.is_empty() && self.ignores(&clean(path))
    }

    /// Whether something below an ignored folder may be taken all the same.
    pub fn takes_back(&self) -> bool {
        self.rules.iter().any(|(takes_back, _)| *takes_back)
    }
}

/// Go's `filepath.Clean`, without a leading `/`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.last().is_some_and(|last| *last != "..") {
                    parts.pop();
                } else if !path.starts_with('/') {
                    parts.push("..");
                }
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return ".".to_owned();
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerignore_rules_as_the_reference_has_them() {
        let ignore = |text: &str| Ignore::parse(text).unwrap();
        for (rules, path, ignored) in [
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "temporary.txt", false),
            ("*/*/temp*", "somedir/subdir/temporary.txt", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("**/*.go", "a/b/c.go", true),
            ("**/*.go", "c.go", true),
            ("*.md\n!README.md", "README.md", false),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            (
                "*.md\nREADME-secret.md\n!README*.md",
                "README-secret.md",
                false,
            ),
            ("node_modules", "node_modules/a/b", true),
            ("/foo/bar", "foo/bar", true),
            ("foo/bar/", "foo/bar", true),
            ("# a comment", "# a comment", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**", "a/x/y", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*\n!a/b", "a/b", false),
            (".", "x", false),
        ] {
            assert_eq!(ignore(rules).ignores(path), ignored, "{rules:?} {path}");
        }
        assert_eq!(Ignore::parse("a\n[b"), Err(2));
    }

    #[test]
    fn flat_patterns_stay_in_their_folder() {
        let fits = |pattern: &str, path: &str| PathPattern::flat(pattern).unwrap().fits(path);
        assert!(fits("*.txt", "a.txt") && !fits("*.txt", "a/b.txt") && !fits("**", "a/b"));
        assert!(fits("a?/[x-z]*", "ab/y1") && !fits("a?/[x-z]*", "ab/a1"));
        assert!(has_wildcards("a*") && !has_wildcards("a\\*") && has_wildcards("a\\\\*"));
    }
}
