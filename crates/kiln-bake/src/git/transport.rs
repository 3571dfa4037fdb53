//! How repositories are asked: by version 2 of the smart protocol (gitprotocol-v2(5)), over HTTP here, and over streams.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{Response, Uri};
use ureq::{Body, ResponseExt};

use super::packets::{Line, Lines};
use super::source::{GitSource, Reached};
use super::stream::{REFS_MAX, by_tcp};
use super::{PACK_MAX, ssh};
use crate::error::BakeError;
use crate::granted::Granted;
use crate::remote::agent;

const VERSION: (&str, &str) = ("Git-Protocol", "version=2");
pub(super) const NO_VERSION: &str =
    "its server does not speak version 2 of Git's protocol, which all of 2018 and later do";
/// The ids of secrets that BuildKit has for repositories: a token, and a whole header.
const AUTH_TOKEN: &str = "GIT_AUTH_TOKEN";
const AUTH_HEADER: &str = "GIT_AUTH_HEADER";

/// What the caller gives for its repositories.
#[derive(Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) granted: &'a Granted,
    /// Where folders for a while are.
    pub(crate) work: &'a Path,
}

/// What servers are told of the secrets: each its own, and that of the caller's repository those that are for any.
#[derive(Clone, Copy)]
pub(super) struct Trust<'a> {
    pub(super) access: Access<'a>,
    /// Of the caller's repository.
    pub(super) origin: &'a Option<Origin>,
}

/// A server, as the connection to it is made: nothing else may decide who is told a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    is_secure: bool,
    /// In small letters, with the port where it is not the scheme's.
    name: String,
}

impl Origin {
    /// None: it is no address of HTTP.
    pub(super) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let (is_secure, usual) = match uri.scheme_str()? {
            "https" => (true, 443),
            "http" => (false, 80),
            _ => return None,
        };
        let host = uri.host()?.to_ascii_lowercase();
        let name = match uri.port_u16() {
            Some(port) if port != usual => format!("{host}:{port}"),
            _ => host,
        };
        Some(Self { is_secure, name })
    }
}

impl Trust<'_> {
    /// By BuildKit's names of secrets, those of the server first.
    fn authorization(&self, url: &str) -> Option<String> {
        let there = Origin::of(url)?;
        let is_own = self.origin.as_ref() == Some(&there);
        // Anybody on the way reads what is not encrypted: only where the caller says so.
        if !there.is_secure && !is_own {
            return None;
        }
        let host = &there.name;
        let text = |name: &str| {
            let secret = self.access.granted.secrets.get(name)?;
            Some(String::from_utf8_lossy(secret).trim().to_owned())
        };
        let basic = |token: String| {
            let user = format!("x-access-token:{token}");
            format!("Basic {}", STANDARD.encode(user))
        };
        let of_any = |found: Option<String>| found.filter(|_| is_own);
        text(&format!("{AUTH_HEADER}.{host}"))
            .or_else(|| text(&format!("{AUTH_TOKEN}.{host}")).map(basic))
            .or_else(|| of_any(text(AUTH_HEADER)))
            .or_else(|| of_any(text(AUTH_TOKEN).map(basic)))
    }
}

/// A repository that answered.
pub(super) enum Repository<'a> {
    Http {
        root: String,
        authorization: Option<String>,
    },
    Tcp {
        host: &'a str,
        path: &'a str,
    },
    Ssh(Access<'a>),
}

impl GitSource {
    pub(super) fn open<'a>(&'a self, trust: Trust<'a>) -> Result<Repository<'a>, BakeError> {
        // They would be lines of other protocols where a server is not Git's.
        if self.url.chars().any(char::is_control) {
            return Err(self.error("its address has control characters"));
        }
        match self.reached() {
            Reached::Http => self.open_by_http(trust),
            Reached::Tcp { host, path } => Ok(Repository::Tcp { host, path }),
            Reached::Ssh => Ok(Repository::Ssh(trust.access)),
            Reached::Otherwise => Err(self.error(
                "it is reached by nothing that kiln speaks: https://, http://, git:// and ssh://",
            )),
        }
    }

    fn open_by_http<'a>(&'a self, trust: Trust<'a>) -> Result<Repository<'a>, BakeError> {
        let asked = format!(
            "{}/info/refs?service=git-upload-pack",
            self.url.trim_end_matches('/')
        );
        let authorization = trust.authorization(&self.url);
        let mut request = agent().get(&asked).header(VERSION.0, VERSION.1);
        if let Some(authorization) = &authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.call().map_err(|error| self.error(error))?;
        let status = response.status();
        if !status.is_success() {
            let help = match (status.as_u16(), &authorization) {
                (401 | 403 | 404, None) => {
                    let there = Origin::of(&self.url);
                    let of_server = match &there {
                        Some(there) if *trust.origin != Some(there.clone()) => {
                            format!(".{}", there.name)
                        }
                        _ => String::new(),
                    };
                    format!(
                        ": there is none, or not for everybody: --secret id={AUTH_TOKEN}{of_server},env=VARIABLE gives a token"
                    )
                }
                (401 | 403 | 404, Some(_)) => {
                    ": there is none, or not for who has this token".to_owned()
                }
                _ => String::new(),
            };
            return Err(self.error(format!("its server answers {status}{help}")));
        }
        // Where it has moved to, it is asked from then on.
        let last = response.get_uri().to_string();
        let root = last.split("/info/refs").next().unwrap_or(&last).to_owned();
        let bytes = body(self, response, REFS_MAX)?;
        if !speaks_version_2(&bytes) {
            return Err(self.error(NO_VERSION));
        }
        // What is for one server is told to no other.
        let authorization = authorization.filter(|_| Origin::of(&root) == Origin::of(&self.url));
        Ok(Repository::Http {
            root,
            authorization,
        })
    }
}

pub(super) fn speaks_version_2(bytes: &[u8]) -> bool {
    let mut lines = Lines(bytes);
    lines.any(|line| matches!(line, Ok(Line::Text(b"version 2\n"))))
}

impl Repository<'_> {
    /// What it answers to one command, of at most `limit` bytes.
    pub(super) fn ask(
        &self,
        source: &GitSource,
        request: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, BakeError> {
        let (root, authorization) = match self {
            Self::Tcp { host, path } => return by_tcp(source, host, path, request, limit),
            Self::Ssh(access) => return ssh::ask(source, *access, request, limit),
            Self::Http {
                root,
                authorization,
            } => (root, authorization),
        };
        let mut post = agent()
            .post(format!("{root}/git-upload-pack"))
            .header(VERSION.0, VERSION.1)
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request");
        if let Some(authorization) = authorization {
            post = post.header(AUTHORIZATION, authorization);
        }
        let response = post.send(request).map_err(|error| source.error(error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(source.error(format!("its server answers {status}")));
        }
        body(source, response, limit)
    }
}

/// All of an answer, of at most `limit` bytes.
fn body(
    source: &GitSource,
    mut response: Response<Body>,
    limit: u64,
) -> Result<Vec<u8>, BakeError> {
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
        return Err(source.error(too_large(limit)));
    }
    Ok(bytes)
}

pub(super) fn too_large(limit: u64) -> String {
    let of_all = if limit < PACK_MAX && limit != REFS_MAX {
        ", with what came before it"
    } else {
        ""
    };
    let most = if of_all.is_empty() { limit } else { PACK_MAX };
    format!("it sends more than {} MiB{of_all}", most >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_its_server_before_it_is_for_all() {
        let url = "https://user@x.io:8443/a.git";
        let told = |url: &str, given: &[(&str, &str)], main: &str| {
            let given = given
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
            let granted = Granted {
                secrets: given.collect(),
                ..Granted::default()
            };
            let trust = Trust {
                access: Access {
                    granted: &granted,
                    work: Path::new("/"),
                },
                origin: &Origin::of(main),
            };
            trust.authorization(url)
        };
        let said = |given: &[(&str, &str)], main: &str| told(url, given, main);
        let own_host = "https://X.io:8443/main.git";
        assert_eq!(said(&[("GIT_AUTH_TOKEN.y.io", "t")], own_host), None);
        let basic = |token: &str| {
            let user = format!("x-access-token:{token}");
            Some(format!("Basic {}", STANDARD.encode(user)))
        };
        let all = ("GIT_AUTH_TOKEN", "all\n");
        assert_eq!(said(&[all], own_host), basic("all"));
        let own = ("GIT_AUTH_TOKEN.x.io:8443", "own");
        assert_eq!(said(&[all, own], own_host), basic("own"));
        let header = ("GIT_AUTH_HEADER", "bearer x");
        assert_eq!(said(&[all, header], own_host), Some("bearer x".to_owned()));
        assert_eq!(said(&[own, header], own_host), basic("own"));
        // A submodule elsewhere gets nothing but what has its server's name.
        assert_eq!(said(&[all, header], "https://y.io/"), None);
        assert_eq!(said(&[own, header], "https://y.io/"), basic("own"));
        // Neither does one whose address only looks like the main one's, or that is not encrypted.
        let main = "https://x.io/main.git";
        for other in [
            "https://evil.test?@x.io/a.git",
            "https://evil.test#@x.io/a.git",
            "http://x.io/a.git",
            "https://x.io:8443/a.git",
            "git://x.io/a.git",
        ] {
            let of_host = ("GIT_AUTH_TOKEN.x.io", "own");
            assert_eq!(told(other, &[all, of_host], main), None, "{other}");
        }
        assert_eq!(told("https://u@x.io:443/a.git", &[all], main), basic("all"));
        let plain = "http://x.io/a.git";
        assert_eq!(told(plain, &[all], plain), basic("all"));
    }
}
