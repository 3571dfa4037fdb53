//! What the caller gives for its repositories, and which server is told which secret.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::Uri;

use crate::agent::SshAgent;

/// The ids of secrets that BuildKit has for repositories: a token, and a whole header.
pub(crate) const AUTH_TOKEN: &str = "GIT_AUTH_TOKEN";
const AUTH_HEADER: &str = "GIT_AUTH_HEADER";

/// What the caller gives for its repositories.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// Tokens and headers among them, by the ids that BuildKit has for them.
    pub secrets: &'a BTreeMap<String, Vec<u8>>,
    /// Who signs in, by id.
    pub ssh: &'a BTreeMap<String, SshAgent>,
    /// What the client of ssh is configured by, in place of the user's own file.
    pub ssh_config: Option<&'a Path>,
    /// Where folders for a while are made.
    pub work: &'a Path,
}

/// What servers are told of the secrets: each its own, and that of the caller's repository those that are for any.
#[derive(Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) access: Access<'a>,
    /// Of the caller's repository.
    pub(crate) origin: &'a Option<Origin>,
}

/// A server, as the connection to it is made: nothing else may decide who is told a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    is_secure: bool,
    /// In small letters, with the port where it is not the scheme's.
    pub(crate) name: String,
}

impl Origin {
    /// None: it is no address of HTTP.
    pub(crate) fn of(url: &str) -> Option<Self> {
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
    pub(crate) fn authorization(&self, url: &str) -> Option<String> {
        let there = Origin::of(url)?;
        let is_own = self.origin.as_ref() == Some(&there);
        // Anybody on the way reads what is not encrypted: only where the caller says so.
        if !there.is_secure && !is_own {
            return None;
        }
        let host = &there.name;
        let text = |name: &str| {
            let secret = self.access.secrets.get(name)?;
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
            let (secrets, ssh) = (given.collect(), BTreeMap::new());
            let trust = Trust {
                access: Access {
                    secrets: &secrets,
                    ssh: &ssh,
                    ssh_config: None,
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
