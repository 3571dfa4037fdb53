//! Addresses of repositories, in the forms that BuildKit has.

use std::fmt;

use kiln_http::{percent_decoded, without_user};

use crate::error::GitError;
use crate::object::Oid;
use crate::reference::Resolved;

/// `https://host/path.git#reference:folder`, or with a query in place of what is behind the `#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// Without what says which part is taken.
    pub url: String,
    /// A branch, a tag or a commit; empty for what HEAD names.
    pub reference: String,
    /// Whose contents are taken; empty for the whole.
    pub folder: String,
    /// What the commit's name has to begin with.
    pub checksum: Option<String>,
    /// Whether `.git` is taken, too.
    pub keep_git_dir: Option<bool>,
    pub submodules: bool,
}

/// How a repository is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reached<'a> {
    Http,
    /// git://, at a host with a port where it has one.
    Tcp {
        host: &'a str,
        path: &'a str,
    },
    Ssh,
    Otherwise,
}

impl GitSource {
    pub(crate) fn error(&self, reason: impl fmt::Display) -> GitError {
        GitError::Repository {
            url: without_user(&self.url),
            reason: reason.to_string(),
        }
    }

    /// The whole of what is at `url`, at `reference`.
    pub(crate) fn new(url: &str, reference: String) -> Self {
        Self {
            url: url.to_owned(),
            reference,
            folder: String::new(),
            checksum: None,
            keep_git_dir: None,
            submodules: true,
        }
    }

    /// None: `text` is no address of a repository. An error: its query says what no query can.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (url, query) = address.split_once('?').unwrap_or((address, ""));
        let by_http = url.starts_with("http://") || url.starts_with("https://");
        let other = url.starts_with("git://") || url.starts_with("ssh://");
        // As scp has it: user@host:path.
        let by_ssh = !url.contains("://")
            && url
                .split_once('@')
                .is_some_and(|(user, rest)| !user.contains('/') && rest.contains(':'));
        if !(by_http && url.ends_with(".git") || other || by_ssh) {
            return Ok(None);
        }
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut source = Self::new(url, percent_decoded(reference));
        source.folder = percent_decoded(folder);
        source.take_query(query)?;
        Ok(Some(source))
    }

    /// As a context it may be written without a scheme, as people have it from a browser.
    pub fn parse_context(text: &str) -> Result<Option<Self>, String> {
        if !text.starts_with("github.com/") {
            return Self::parse(text);
        }
        let (path, rest) = text.split_at(text.find(['?', '#']).unwrap_or(text.len()));
        let path = path.trim_end_matches(".git");
        Self::parse(&format!("https://{path}.git{rest}"))
    }

    /// `ref=…&subdir=…` and the like, of Dockerfile syntax 1.20.
    fn take_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen: Vec<&str> = Vec::new();
        let (mut tag, mut branch) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&key) {
                return Err(format!("its query has `{key}` more than once"));
            }
            seen.push(key);
            let value = percent_decoded(&value.replace('+', " "));
            if value.is_empty() && !matches!(key, "submodules" | "keep-git-dir") {
                return Err(format!("the `{key}` of its query has no value"));
            }
            match key {
                "ref" => merge(key, &mut self.reference, value)?,
                "subdir" => merge(key, &mut self.folder, value)?,
                "tag" => tag = Some(below("refs/tags/", value)),
                "branch" => branch = Some(below("refs/heads/", value)),
                "checksum" | "commit" if !is_short_name(&value) => {
                    return Err(format!(
                        "the `{key}` of its query is 7 hexadecimal digits of a commit or more, not `{value}`"
                    ));
                }
                "checksum" | "commit" => self.checksum = Some(value),
                "keep-git-dir" => self.keep_git_dir = Some(truth(key, &value)?),
                "submodules" => self.submodules = truth(key, &value)?,
                other => {
                    return Err(format!(
                        "its query can't have `{other}`: it has ref, tag, branch, commit, checksum, subdir, submodules and keep-git-dir"
                    ));
                }
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err("its query names a branch and a tag".to_owned());
        }
        for value in [tag, branch].into_iter().flatten() {
            merge("ref", &mut self.reference, value)?;
        }
        Ok(())
    }

    pub(crate) fn reached(&self) -> Reached<'_> {
        let url = self.url.as_str();
        if url.starts_with("http://") || url.starts_with("https://") {
            return Reached::Http;
        }
        if let Some(rest) = url.strip_prefix("git://") {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            return Reached::Tcp { host, path };
        }
        if url.starts_with("ssh://") || !url.contains("://") && url.contains('@') {
            return Reached::Ssh;
        }
        Reached::Otherwise
    }

    /// Whether what the reference names is what the checksum says; `wanted` may be the tag's as well as the commit's.
    pub fn is_wanted(wanted: &str, found: &Resolved) -> bool {
        let names = [Some(found.commit), found.tag];
        let mut names = names.iter().flatten().map(Oid::to_string);
        names.any(|name| name.starts_with(&wanted.to_ascii_lowercase()))
    }
}

/// At least as many digits of a commit's name as Git itself shows.
fn is_short_name(text: &str) -> bool {
    text.len() >= 7 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What is said twice has to be the same.
fn merge(key: &str, known: &mut String, value: String) -> Result<(), String> {
    if !known.is_empty() && *known != value {
        return Err(format!("its {key} is `{known}` and `{value}`"));
    }
    *known = value;
    Ok(())
}

fn below(prefix: &str, value: String) -> String {
    if value.starts_with(prefix) {
        value
    } else {
        format!("{prefix}{value}")
    }
}

/// As Go's strconv.ParseBool has it; without a value it is true.
fn truth(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!(
            "the `{key}` of its query is true or false, not `{other}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_repositories_are_known_by_their_form() {
        for (text, expected) in [
            ("https://x.io/a.git", Some(("https://x.io/a.git", "", ""))),
            (
                "https://x.io/a.git#v1:docs/en",
                Some(("https://x.io/a.git", "v1", "docs/en")),
            ),
            (
                "http://x.io/a.git#:sub",
                Some(("http://x.io/a.git", "", "sub")),
            ),
            (
                "git@x.io:a/b.git#main",
                Some(("git@x.io:a/b.git", "main", "")),
            ),
            ("ssh://git@x.io/a", Some(("ssh://git@x.io/a", "", ""))),
            ("git://x.io:99/a", Some(("git://x.io:99/a", "", ""))),
            (
                "https://x.io/a.git?branch=b&subdir=d%2Fe",
                Some(("https://x.io/a.git", "refs/heads/b", "d/e")),
            ),
            (
                "https://x.io/a.git?ref=v1#v1:d",
                Some(("https://x.io/a.git", "v1", "d")),
            ),
            ("https://x.io/a.tar.gz", None),
            ("https://x.io/a.tar.gz?x=.git", None),
            ("https://user@x.io:8/a", None),
            ("a.git", None),
            ("dir/a@b:c", None),
        ] {
            let found = GitSource::parse(text).unwrap();
            let found = found
                .as_ref()
                .map(|source| (&*source.url, &*source.reference, &*source.folder));
            assert_eq!(found, expected, "{text}");
        }
        let context = GitSource::parse_context("github.com/a/b#main:c").unwrap();
        let context = context.unwrap();
        assert_eq!(context.url, "https://github.com/a/b.git");
        assert_eq!((&*context.reference, &*context.folder), ("main", "c"));
    }

    #[test]
    fn a_query_says_what_the_fragment_can_not() {
        let source = |query: &str| GitSource::parse(&format!("https://x.io/a.git?{query}"));
        let all = "tag=v1&keep-git-dir&submodules=0&checksum=abcdef0";
        let found = source(all).unwrap().unwrap();
        assert_eq!(found.reference, "refs/tags/v1");
        assert_eq!((found.keep_git_dir, found.submodules), (Some(true), false));
        assert_eq!(found.checksum.as_deref(), Some("abcdef0"));
        for (query, said) in [
            ("x=1", "can't have `x`"),
            ("ref=", "has no value"),
            ("ref=a&ref=b", "more than once"),
            ("ref=a&tag=a", "`a` and `refs/tags/a`"),
            ("tag=a&branch=b", "a branch and a tag"),
            ("submodules=maybe", "true or false"),
            ("checksum=a", "7 hexadecimal digits"),
        ] {
            let error = source(query).unwrap_err();
            assert!(error.contains(said), "{query}: {error}");
        }
        assert!(GitSource::parse("https://x.io/a.git?ref=a#b").is_err());
    }
}
