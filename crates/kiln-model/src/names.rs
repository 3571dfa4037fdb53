//! Names that a person chooses. They become parts of DNS names, cgroup paths and file names, so the
//! rule is that of a DNS label (RFC 1123, section 2.1), lower case and starting with a letter.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The domain that services have names in: `SERVICE.ENVIRONMENT` below it. `.internal` is reserved for what is not the
/// world's.
pub const ZONE: [&str; 2] = ["kiln", "internal"];

/// Why a text is not a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` is not a valid {what} name: use a lower-case letter, then at most 39 letters, digits or hyphens, \
     not ending in a hyphen"
)]
pub struct NameError {
    pub what: &'static str,
    pub text: String,
}

fn is_label(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                if is_label(&text) { Ok(Self(text)) } else { Err(NameError { what: $what, text }) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name! {
    /// The definition that a service belongs to; apply removes only what its own project has.
    ProjectName, "project"
}
name! {
    /// Where a service runs: dev, staging, production.
    EnvName, "environment"
}
name! { ServiceName, "service" }
name! { ImageName, "image" }

/// A service in an environment: what has releases, a policy and at most one rollout.
/// Written `ENVIRONMENT/SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    pub environment: EnvName,
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.environment, self.service)
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((environment, service)) => Ok(Self {
                environment: environment.parse()?,
                service: service.parse()?,
            }),
            None => Err(NameError {
                what: "ENVIRONMENT/SERVICE",
                text,
            }),
        }
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "api", "api-2", "a1"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "1a",
            "a_b",
            "a-",
            "-a",
            "a/b",
            "a.b",
            "..",
            &"a".repeat(41),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_key_is_one_json_string() {
        let key = ServiceKey {
            environment: "dev".parse().unwrap(),
            service: "api".parse().unwrap(),
        };
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, r#""dev/api""#);
        assert_eq!(serde_json::from_str::<ServiceKey>(&json).unwrap(), key);
    }
}
