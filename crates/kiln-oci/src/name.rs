//! Names of images as registries have them: `[host/]path[:tag][@digest]` (distribution's reference grammar).

use std::fmt;

use kiln_model::Digest;

const DOCKER: &str = "docker.io";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryName {
    /// With its port, where it has one.
    pub host: String,
    pub repository: String,
    pub tag: String,
    pub digest: Option<Digest>,
}

/// A name or an address (those of version 6 in brackets), and a port where it has one.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", rest),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        ends.iter()
            .all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    let port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|number| number.parse::<u16>().is_ok());
    port && name.split('.').all(label)
}

impl RegistryName {
    /// Why `text` is no name, where it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|error| format!("{error}"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].split_once(':') {
            Some((last, tag)) => (&rest[..slash + last.len()], tag),
            None => (rest, "latest"),
        };
        let (host, path) = match path.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DOCKER, path),
        };
        // Its old name.
        let host = if host == "index.docker.io" {
            DOCKER
        } else {
            host
        };
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err("a name of an image is in lower case".to_owned());
        }
        let good_part = |part: &str| {
            let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let ends =
                part.bytes().next().is_some_and(inside) && part.bytes().last().is_some_and(inside);
            ends && part.bytes().all(|b| inside(b) || b"._-".contains(&b))
        };
        let good_tag = tag.len() <= 128
            && tag
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
            && tag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !is_host(host) || !path.split('/').all(good_part) || !good_tag {
            return Err("it is not the name of an image".to_owned());
        }
        let repository = if host == DOCKER && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        Ok(Self {
            host: host.to_owned(),
            repository,
            tag: tag.to_owned(),
            digest,
        })
    }

    /// Who answers for the host.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER {
            "registry-1.docker.io"
        } else {
            &self.host
        }
    }

    /// On this machine, where nobody else listens.
    pub fn is_local(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.host,
        };
        host == "localhost" || host == "[::1]" || {
            host.parse::<std::net::Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
        }
    }
}

/// One form for all ways to write a name: `docker.io/library/debian` is `debian:latest`. What is no name stays as it is.
pub fn normal_name(text: &str) -> String {
    let Ok(name) = RegistryName::parse(text) else {
        return text.to_owned();
    };
    let whole = name.to_string();
    let short = whole
        .strip_prefix(DOCKER)
        .and_then(|rest| rest.strip_prefix('/'))
        .map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
    short.unwrap_or(&whole).to_owned()
}

pub fn same_name(one: &str, other: &str) -> bool {
    normal_name(one) == normal_name(other)
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            repository,
            tag,
            digest,
        } = self;
        match digest {
            Some(digest) => write!(f, "{host}/{repository}@{digest}"),
            None => write!(f, "{host}/{repository}:{tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_dockers_defaults() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("a/b", "docker.io/a/b:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("ghcr.io/a/b/c", "ghcr.io/a/b/c:latest"),
            (&format!("x.io/a:1@{digest}"), &format!("x.io/a@{digest}")),
        ] {
            let name = RegistryName::parse(text).unwrap();
            assert_eq!(name.to_string(), whole, "{text}");
        }
        for wrong in [
            "",
            "Debian",
            "a//b",
            "/a",
            "a:",
            "a:b:c",
            "-a",
            "a b",
            "../x",
            "x.io/../y",
            "a@sha256:1",
            "a:../x",
            "evil.io?/a",
            "user@evil.io/a",
        ] {
            assert!(RegistryName::parse(wrong).is_err(), "{wrong}");
        }
        for (host, local) in [
            ("localhost:5000", true),
            ("127.0.0.2", true),
            ("[::1]:80", true),
            ("localhost.evil.io", false),
            ("10.0.0.1:5000", false),
            ("127.0.0.1.evil.io", false),
        ] {
            let name = RegistryName::parse(&format!("{host}/a")).unwrap();
            assert_eq!(name.is_local(), local, "{host}");
        }
    }

    #[test]
    fn names_are_equal_as_registries_have_them() {
        for (one, other, equal) in [
            ("debian", "docker.io/library/debian:latest", true),
            ("debian", "index.docker.io/debian", true),
            ("debian:12", "library/debian:12", true),
            ("debian", "debian:12", false),
            ("localhost:5000/a", "localhost:5000/a:latest", true),
            ("a/debian", "debian", false),
            ("ghcr.io/library/a", "ghcr.io/a", false),
            ("No Name", "No Name", true),
        ] {
            assert_eq!(same_name(one, other), equal, "{one} {other}");
        }
        assert_eq!(normal_name("docker.io/library/debian"), "debian:latest");
        assert_eq!(normal_name("base:1-0123abcd"), "base:1-0123abcd");
    }
}
