//! Patterns of paths, as Terraform's `fileset` has them: `*` and `?` within a name, `**` for any folders, `[a-z]`, `[^a-z]`, `{a,b}`.

use regex::Regex;

pub(super) struct Pattern(Regex);

impl Pattern {
    /// `None`: a bracket or a brace is not closed.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let mut text = String::from("^");
        let mut rest = pattern;
        let mut depth = 0;
        while let Some(next) = rest.chars().next() {
            rest = &rest[next.len_utf8()..];
            match next {
                // Also none.
                '*' if rest.starts_with("*/") => {
                    rest = &rest[2..];
                    text.push_str("(?:[^/]+/)*");
                }
                '*' if rest.starts_with('*') => {
                    rest = &rest[1..];
                    text.push_str(".*");
                }
                '*' => text.push_str("[^/]*"),
                '?' => text.push_str("[^/]"),
                '[' => {
                    // One that comes first is meant as such.
                    let first = rest.char_indices().skip(1);
                    let (end, _) = first.into_iter().find(|(_, c)| *c == ']')?;
                    let inner = &rest[..end];
                    let (not, inner) = match inner.strip_prefix(['^', '!']) {
                        Some(inner) => ("^/", inner),
                        None => ("", inner),
                    };
                    text.push_str(&format!(
                        "[{not}{}]",
                        inner.replace('\\', "\\\\").replace('[', "\\[")
                    ));
                    rest = &rest[end + 1..];
                }
                '{' => {
                    depth += 1;
                    text.push_str("(?:");
                }
                '}' if depth > 0 => {
                    depth -= 1;
                    text.push(')');
                }
                ',' if depth > 0 => text.push('|'),
                '\\' => {
                    let literal = rest.chars().next()?;
                    rest = &rest[literal.len_utf8()..];
                    text.push_str(&regex::escape(&literal.to_string()));
                }
                other => text.push_str(&regex::escape(&other.to_string())),
            }
        }
        text.push('$');
        (depth == 0).then_some(())?;
        Regex::new(&text).ok().map(Self)
    }

    pub(super) fn fits(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_a_folder_and_two_do_not() {
        let paths = [
            "a.txt",
            "b.md",
            "sub/a.txt",
            "sub/deep/c.txt",
            "[x]",
            ".hidden",
        ];
        let fitting = |pattern: &str| -> Vec<&str> {
            let pattern = Pattern::new(pattern).unwrap();
            paths
                .into_iter()
                .filter(|path| pattern.fits(path))
                .collect()
        };
        assert_eq!(fitting("*.txt"), ["a.txt"]);
        assert_eq!(
            fitting("**/*.txt"),
            ["a.txt", "sub/a.txt", "sub/deep/c.txt"]
        );
        assert_eq!(fitting("sub/**"), ["sub/a.txt", "sub/deep/c.txt"]);
        assert_eq!(fitting("{a,b}.{txt,md}"), ["a.txt", "b.md"]);
        assert_eq!(fitting("[^a].*"), ["b.md"]);
        assert_eq!(fitting("?.txt"), ["a.txt"]);
        assert_eq!(fitting("\\[x]"), ["[x]"]);
        assert_eq!(fitting(".*"), [".hidden"]);
        assert!(Pattern::new("[a").is_none() && Pattern::new("{a").is_none());
    }
}
