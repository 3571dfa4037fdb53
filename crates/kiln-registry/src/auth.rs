//! Who kiln is to a registry: what docker's `config.json` says, and the token that a registry's own server gives for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use kiln_oci::RegistryName;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::header::AUTHORIZATION;

/// A file of credentials has some kilobytes, a token's answer too.
const LIMIT: u64 = 1 << 20;

#[derive(Default)]
pub(crate) struct Credentials {
    /// User and password.
    basic: Option<(String, String)>,
    /// What a token is got for, in place of a password.
    refresh: Option<String>,
    /// The program that keeps them, which is no part of kiln.
    helper: Option<String>,
}

/// Of docker's `config.json`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Credentials {
    pub(crate) fn find(files: &[PathBuf], name: &RegistryName) -> Result<Self, String> {
        let mut helper = None;
        for path in files {
            let Some(config) = read(path)? else { continue };
            let mut auths = config.auths.into_iter();
            let auth = auths
                .find(|(known, _)| registry_of(known) == name.host)
                .map(|(_, auth)| auth);
            let (basic, refresh) = match auth {
                Some(auth) => auth
                    .read()
                    .map_err(|problem| format!("{}: {problem}", path.display()))?,
                None => (None, None),
            };
            if basic.is_some() || refresh.is_some() {
                return Ok(Self {
                    basic,
                    refresh,
                    helper: None,
                });
            }
            let mut helpers = config.cred_helpers.into_iter();
            let own = helpers.find(|(known, _)| registry_of(known) == name.host);
            helper = helper
                .or(own.map(|(_, helper)| helper))
                .or(config.creds_store);
        }
        Ok(Self {
            helper,
            ..Self::default()
        })
    }

    /// The `Authorization` that one of the registry's challenges asks for (RFC 7235; distribution's "Token Authentication").
    pub(crate) fn answer(
        &self,
        agent: &Agent,
        challenges: &[String],
        name: &RegistryName,
    ) -> Result<String, String> {
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let token = self.token(agent, &parameters(rest), name)?;
                return Ok(format!("Bearer {token}"));
            }
            if scheme.eq_ignore_ascii_case("basic")
                && let Some(basic) = self.basic()
            {
                return Ok(basic);
            }
        }
        let advice = self.advice(&name.host);
        Err(format!(
            "it asks for a login that there is none for: {advice}"
        ))
    }

    fn basic(&self) -> Option<String> {
        let (user, password) = self.basic.as_ref()?;
        let pair = STANDARD.encode(format!("{user}:{password}"));
        Some(format!("Basic {pair}"))
    }

    fn token(
        &self,
        agent: &Agent,
        challenge: &BTreeMap<String, String>,
        name: &RegistryName,
    ) -> Result<String, String> {
        let realm = challenge
            .get("realm")
            .ok_or("its challenge names no server to get a token from")?;
        let service = challenge.get("service").map_or("", String::as_str);
        let scope = challenge
            .get("scope")
            .cloned()
            .unwrap_or_else(|| format!("repository:{}:pull", name.repository));
        let failed = |error: ureq::Error| format!("{realm} can't be asked for a token: {error}");
        let answer = match &self.refresh {
            Some(refresh) => agent
                .post(realm)
                .send_form([
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "kiln"),
                    ("scope", scope.as_str()),
                    ("refresh_token", refresh),
                ])
                .map_err(failed)?,
            None => {
                let mut request = agent.get(realm).query("scope", &scope);
                if !service.is_empty() {
                    request = request.query("service", service);
                }
                if let Some(basic) = self.basic() {
                    request = request.header(AUTHORIZATION, basic);
                }
                request.call().map_err(failed)?
            }
        };
        let status = answer.status();
        if !status.is_success() {
            let advice = match status.as_u16() {
                400..500 => format!(": {}", self.advice(&name.host)),
                _ => String::new(),
            };
            return Err(format!("{realm} gives no token ({status}){advice}"));
        }
        let mut bytes = Vec::new();
        answer
            .into_body()
            .into_reader()
            .take(LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("the token of {realm} can't be read: {error}"))?;
        let Token {
            token,
            access_token,
        } = serde_json::from_slice(&bytes)
            .map_err(|error| format!("the token of {realm} can't be understood: {error}"))?;
        token
            .or(access_token)
            .ok_or_else(|| format!("{realm} gives no token"))
    }

    /// What may help somebody who was refused.
    pub(crate) fn advice(&self, host: &str) -> String {
        if self.basic.is_some() || self.refresh.is_some() {
            return format!("the login for {host} is known and not enough");
        }
        match &self.helper {
            Some(helper) => format!(
                "the login for {host} is kept by docker-credential-{helper}, and kiln runs no programs of the host: write it into a config.json with an `auth`, and name its folder with DOCKER_CONFIG"
            ),
            None => format!(
                "`docker login {host}` or `podman login {host}` keeps a login where kiln finds it"
            ),
        }
    }
}

impl Auth {
    #[allow(clippy::type_complexity)]
    fn read(self) -> Result<(Option<(String, String)>, Option<String>), String> {
        let refresh = self.identitytoken.filter(|token| !token.is_empty());
        if let (Some(user), Some(password)) = (self.username, self.password) {
            return Ok((Some((user, password)), refresh));
        }
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else {
            return Ok((None, refresh));
        };
        let wrong = || "an `auth` is not user and password in base64".to_owned();
        let bytes = STANDARD
            .decode(&auth)
            .or_else(|_| STANDARD_NO_PAD.decode(&auth))
            .map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (user, password) = text.split_once(':').ok_or_else(wrong)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok((Some((user.to_owned(), password)), refresh))
    }
}

fn read(path: &Path) -> Result<Option<Config>, String> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} can't be read: {error}", path.display())),
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| format!("{} can't be understood: {error}", path.display()))
}

/// The registry that a key of `auths` is for: docker.io's is an address.
fn registry_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// `realm="…",service="…"`.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start();
    while let Some((name, value)) = rest.split_once('=') {
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        found.insert(name.trim().to_lowercase(), value.to_owned());
        rest = after.trim_start_matches([',', ' ']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_as_docker_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6cGFzczp3b3Jk"},
            "x.io": {"auth": "PHRva2VuPjo=", "identitytoken": "long"},
            "localhost:5000": {"username": "u", "password": "p"},
            "empty.io": {}}, "credsStore": "desktop", "credHelpers": {"h.io": "ecr"}}"#;
        std::fs::write(&path, text).unwrap();
        let files = [folder.path().join("none.json"), path.clone()];
        let find = |name: &str| {
            let name = RegistryName::parse(name).unwrap();
            Credentials::find(&files, &name).unwrap()
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(find("debian").basic, pair("me", "pass:word"));
        assert_eq!(find("localhost:5000/a").basic, pair("u", "p"));
        assert_eq!(find("x.io/a").refresh.as_deref(), Some("long"));
        assert_eq!(find("empty.io/a").helper.as_deref(), Some("desktop"));
        assert!(
            find("h.io/a")
                .advice("h.io")
                .contains("docker-credential-ecr")
        );
        std::fs::write(&path, r#"{"auths": {"x.io": {"auth": "?"}}}"#).unwrap();
        let name = RegistryName::parse("x.io/a").unwrap();
        let wrong = Credentials::find(&files, &name).err().unwrap();
        assert!(wrong.contains("config.json"), "{wrong}");
    }

    #[test]
    fn who_is_asked_for_a_login_that_there_is_none_for_is_told_where_it_belongs() {
        let name = RegistryName::parse("x.io/a").unwrap();
        let asked = |credentials: Credentials| {
            let challenges = ["Basic realm=\"x\"".to_owned()];
            let agent = kiln_http::client();
            credentials.answer(&agent, &challenges, &name).unwrap_err()
        };
        let none = asked(Credentials::default());
        assert!(none.contains("`podman login x.io`"), "{none}");
        let kept = asked(Credentials {
            helper: Some("ecr".to_owned()),
            ..Credentials::default()
        });
        assert!(kept.contains("docker-credential-ecr"), "{kept}");
    }

    #[test]
    fn challenges_are_read() {
        let found = parameters(
            r#"realm="https://a.io/token?x=1,2",service=registry, scope="repository:a:pull,push""#,
        );
        assert_eq!(found["realm"], "https://a.io/token?x=1,2");
        assert_eq!(found["service"], "registry");
        assert_eq!(found["scope"], "repository:a:pull,push");
    }
}
