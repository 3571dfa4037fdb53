//! Git repositories of the network, for ADD: one commit's files, by the smart protocol's version 2 over HTTP (gitprotocol-v2(5)).
//!
//! Only that commit comes, without its history. What comes is known by Git's own names, which are checked.

mod checkout;
pub mod object;
mod pack;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::ResponseExt;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};

use crate::error::BakeError;
use crate::remote::agent;
pub(crate) use object::Oid;
use pack::Pack;

/// The references of a large repository have some megabytes.
const REFS_MAX: u64 = 64 << 20;
/// Held in memory while its files are written.
const PACK_MAX: u64 = 2 << 30;
const VERSION: (&str, &str) = ("Git-Protocol", "version=2");
/// The ids of secrets that BuildKit has for repositories: a token, and a whole header.
const AUTH_TOKEN: &str = "GIT_AUTH_TOKEN";
const AUTH_HEADER: &str = "GIT_AUTH_HEADER";

/// What the caller keeps to itself, by id.
pub(crate) type Secrets = BTreeMap<String, Vec<u8>>;

/// The name and port of a server.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

/// `https://host/path.git#reference:folder`, as BuildKit has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GitSource {
    pub(crate) url: String,
    /// A branch, a tag or a commit; empty for what HEAD names.
    pub(crate) reference: String,
    /// Whose contents are taken; empty for the whole.
    pub(crate) folder: String,
}

impl GitSource {
    /// None: `text` is no address of a repository.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (path, _) = url.split_once('?').unwrap_or((url, ""));
        let by_http = url.starts_with("http://") || url.starts_with("https://");
        let other = url.starts_with("git://") || url.starts_with("ssh://");
        // As scp has it: user@host:path.
        let by_ssh = url
            .split_once('@')
            .is_some_and(|(user, rest)| !user.contains('/') && rest.contains(':'));
        if !(by_http && path.ends_with(".git") || other || by_ssh) {
            return None;
        }
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        Some(Self {
            url: url.to_owned(),
            reference: reference.to_owned(),
            folder: folder.to_owned(),
        })
    }

    pub(crate) fn is_http(&self) -> bool {
        self.url.starts_with("http://") || self.url.starts_with("https://")
    }

    fn error(&self, reason: impl fmt::Display) -> BakeError {
        BakeError::Git {
            url: self.url.clone(),
            reason: reason.to_string(),
        }
    }

    /// The commit that the reference names now. Only a whole name of a commit is known without asking.
    pub(crate) fn resolve(&self, secrets: &Secrets) -> Result<Oid, BakeError> {
        if let Some(commit) = Oid::parse(&self.reference) {
            return Ok(commit);
        }
        let repository = self.open(secrets)?;
        let wanted = match self.reference.as_str() {
            "" => vec!["HEAD".to_owned()],
            name if name.starts_with("refs/") => vec![name.to_owned()],
            name => vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")],
        };
        let mut request = Vec::new();
        line(&mut request, "command=ls-refs\n");
        request.extend(b"0001");
        line(&mut request, "peel\n");
        for name in &wanted {
            line(&mut request, &format!("ref-prefix {name}\n"));
        }
        request.extend(b"0000");
        let answer = repository.ask(self, request, REFS_MAX)?;
        let mut found = Vec::new();
        for line in Lines(&answer) {
            let line = line.map_err(|problem| self.error(problem))?;
            let Line::Text(text) = line else { continue };
            let text = String::from_utf8_lossy(text);
            let mut words = text.trim_end().split(' ');
            let (Some(oid), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            let peeled = words.find_map(|word| word.strip_prefix("peeled:"));
            if let Some(oid) = Oid::parse(peeled.unwrap_or(oid)) {
                found.push((name.to_owned(), oid));
            }
        }
        // A branch before a tag of its name, as git's checkout has it.
        let known = |name: &String| found.iter().find(|(known, _)| known == name);
        wanted
            .iter()
            .find_map(known)
            .map(|(_, oid)| *oid)
            .ok_or_else(|| match self.reference.as_str() {
                "" => self.error("it has no commit yet"),
                name => self.error(format!(
                    "it has no branch and no tag `{name}`, which is no whole name of a commit either"
                )),
            })
    }

    /// Writes the files of `commit` into `to`, an empty folder.
    pub(crate) fn check_out(
        &self,
        commit: Oid,
        to: &Path,
        secrets: &Secrets,
    ) -> Result<(), BakeError> {
        let repository = self.open(secrets)?;
        let mut request = Vec::new();
        line(&mut request, "command=fetch\n");
        request.extend(b"0001");
        for argument in ["no-progress", "ofs-delta", "deepen 1"] {
            line(&mut request, &format!("{argument}\n"));
        }
        line(&mut request, &format!("want {commit}\n"));
        line(&mut request, "done\n");
        request.extend(b"0000");
        let answer = repository.ask(self, request, PACK_MAX)?;
        let pack = packfile(answer).map_err(|problem| self.error(problem))?;
        let pack = Pack::read(pack).map_err(|problem| self.error(problem))?;
        checkout::write(self, &pack, commit, to)
    }

    /// What the caller gave for this server: by BuildKit's names of secrets, those of the server first.
    fn authorization(&self, secrets: &Secrets) -> Option<String> {
        let host = host(&self.url);
        let text = |name: &str| {
            let secret = secrets.get(name)?;
            Some(String::from_utf8_lossy(secret).trim().to_owned())
        };
        let basic = |token: String| {
            let user = format!("x-access-token:{token}");
            format!("Basic {}", STANDARD.encode(user))
        };
        text(&format!("{AUTH_HEADER}.{host}"))
            .or_else(|| text(&format!("{AUTH_TOKEN}.{host}")).map(basic))
            .or_else(|| text(AUTH_HEADER))
            .or_else(|| text(AUTH_TOKEN).map(basic))
    }

    fn open(&self, secrets: &Secrets) -> Result<Repository, BakeError> {
        let asked = format!(
            "{}/info/refs?service=git-upload-pack",
            self.url.trim_end_matches('/')
        );
        let authorization = self.authorization(secrets);
        let mut request = agent().get(&asked).header(VERSION.0, VERSION.1);
        if let Some(authorization) = &authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.call().map_err(|error| self.error(error))?;
        let status = response.status();
        if !status.is_success() {
            let help = match (status.as_u16(), &authorization) {
                (401 | 403 | 404, None) => {
                    ": there is none, or not for everybody: --secret id=GIT_AUTH_TOKEN,env=VARIABLE gives a token"
                }
                (401 | 403 | 404, Some(_)) => ": there is none, or not for who has this token",
                _ => "",
            };
            return Err(self.error(format!("its server answers {status}{help}")));
        }
        // Where it has moved to, it is asked from then on.
        let last = response.get_uri().to_string();
        let root = last.split("/info/refs").next().unwrap_or(&last).to_owned();
        let mut bytes = Vec::new();
        response
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .reader()
            .take(REFS_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| self.error(error))?;
        let mut lines = Lines(&bytes);
        let has_version = lines.any(|line| matches!(line, Ok(Line::Text(b"version 2\n"))));
        if !has_version {
            return Err(self.error(
                "its server does not speak version 2 of Git's protocol, which all of 2018 and later do",
            ));
        }
        // What is for one server is told to no other.
        let authorization = authorization.filter(|_| host(&root) == host(&self.url));
        Ok(Repository {
            root,
            authorization,
        })
    }
}

/// A repository that answered.
struct Repository {
    root: String,
    authorization: Option<String>,
}

impl Repository {
    fn ask(&self, source: &GitSource, request: Vec<u8>, limit: u64) -> Result<Vec<u8>, BakeError> {
        let mut post = agent()
            .post(format!("{}/git-upload-pack", self.root))
            .header(VERSION.0, VERSION.1)
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request");
        if let Some(authorization) = &self.authorization {
            post = post.header(AUTHORIZATION, authorization);
        }
        let mut response = post.send(&request).map_err(|error| source.error(error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(source.error(format!("its server answers {status}")));
        }
        let mut bytes = Vec::new();
        response
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .reader()
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| source.error(error))?;
        if bytes.len() as u64 > limit {
            return Err(source.error(format!("it is larger than {} MiB", limit >> 20)));
        }
        Ok(bytes)
    }
}

/// One packet (gitprotocol-common(5), "pkt-line Format").
fn line(out: &mut Vec<u8>, text: &str) {
    out.extend(format!("{:04x}", text.len() + 4).into_bytes());
    out.extend(text.as_bytes());
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Text(&'a [u8]),
    /// Flush, delimiter or the end of the answer.
    Mark,
}

struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = self
            .0
            .get(..4)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let (length, text) = match length {
            Some(length @ 0..4) => (4.max(length), Line::Mark),
            Some(length) if length <= self.0.len() => (length, Line::Text(&self.0[4..length])),
            _ => {
                self.0 = &[];
                return Some(Err("its server's answer breaks off".to_owned()));
            }
        };
        self.0 = &self.0[length..];
        Some(match text {
            Line::Text(text) if text.starts_with(b"ERR ") => {
                let said = String::from_utf8_lossy(&text[4..]);
                Err(format!("its server says: {}", said.trim()))
            }
            line => Ok(line),
        })
    }
}

/// The pack of an answer to `fetch`: what its first side band says, after the section's name. It takes the answer's place, so
/// that there are no two of them in memory.
fn packfile(mut answer: Vec<u8>) -> Result<Vec<u8>, String> {
    let (mut is_pack, mut at, mut end) = (false, 0, 0);
    while at < answer.len() {
        let mut lines = Lines(&answer[at..]);
        let line = lines.next().transpose()?;
        at = answer.len() - lines.0.len();
        let Some(Line::Text(text)) = line else {
            continue;
        };
        if !is_pack {
            is_pack = text == b"packfile\n";
            continue;
        }
        match text.split_first() {
            Some((1, data)) => {
                let from = at - data.len();
                end += data.len();
                answer.copy_within(from..at, end - (at - from));
            }
            Some((3, said)) => {
                let said = String::from_utf8_lossy(said);
                return Err(format!("its server says: {}", said.trim()));
            }
            _ => {}
        }
    }
    answer.truncate(end);
    if answer.is_empty() {
        return Err("its server sends nothing: does it have that commit?".to_owned());
    }
    Ok(answer)
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
            ("https://x.io/a.tar.gz", None),
            ("a.git", None),
            ("dir/a@b:c", None),
        ] {
            let found = GitSource::parse(text);
            let found = found
                .as_ref()
                .map(|source| (&*source.url, &*source.reference, &*source.folder));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_token_is_for_its_server_before_it_is_for_all() {
        let source = GitSource::parse("https://user@x.io:8443/a.git").unwrap();
        let said = |given: &[(&str, &str)]| {
            let given = given
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
            source.authorization(&given.collect())
        };
        assert_eq!(said(&[("GIT_AUTH_TOKEN.y.io", "t")]), None);
        let basic = |token: &str| {
            let user = format!("x-access-token:{token}");
            Some(format!("Basic {}", STANDARD.encode(user)))
        };
        let all = ("GIT_AUTH_TOKEN", "all\n");
        assert_eq!(said(&[all]), basic("all"));
        let own = ("GIT_AUTH_TOKEN.x.io:8443", "own");
        assert_eq!(said(&[all, own]), basic("own"));
        let header = ("GIT_AUTH_HEADER", "bearer x");
        assert_eq!(said(&[all, header]), Some("bearer x".to_owned()));
        assert_eq!(said(&[own, header]), basic("own"));
    }

    #[test]
    fn packets_that_break_off_are_errors() {
        let mut bytes = Vec::new();
        line(&mut bytes, "a\n");
        bytes.extend(b"0000");
        let lines: Vec<_> = Lines(&bytes).collect();
        assert_eq!(lines, [Ok(Line::Text(b"a\n")), Ok(Line::Mark)]);
        for wrong in [&b"000"[..], b"0009ab", b"zzzz", b"ffff"] {
            assert!(Lines(wrong).any(|line| line.is_err()), "{wrong:?}");
        }
        let said = Lines(b"0009ERR x").next();
        assert_eq!(said, Some(Err("its server says: x".to_owned())));
    }

    #[test]
    fn a_pack_is_what_the_first_band_says() {
        let packet = |text: &[u8]| [format!("{:04x}", text.len() + 4).as_bytes(), text].concat();
        let answer = |last: &[u8]| {
            let parts = [
                &b"shallow-info\n"[..],
                b"packfile\n",
                b"\x01PA",
                b"\x02half of it",
                b"\x01CK",
                last,
            ];
            let mut bytes: Vec<u8> = parts.iter().flat_map(|part| packet(part)).collect();
            bytes.extend(b"0000");
            bytes
        };
        assert_eq!(packfile(answer(b"\x01!")).unwrap(), b"PACK!");
        let error = packfile(answer(b"\x03no more")).unwrap_err();
        assert_eq!(error, "its server says: no more");
        assert!(packfile(answer(b"\x01")[..40].to_vec()).is_err());
        assert!(packfile(b"0000".to_vec()).is_err());
    }
}
