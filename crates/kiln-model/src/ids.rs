//! Numbers and ids. All are given by the planner or the journal, never by the part that uses them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ServiceKey;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a release within its service and environment, from 1: the `7` of `api@7`.
    ReleaseNumber
}
number! {
    /// Grows with each routing table or instance command; a lower one than the last seen is refused.
    Generation
}
number! {
    /// An action of the planner, unique within its service and environment.
    ActionId
}
number! {
    /// A state of the whole journal: the sequence number of its last entry. What a plan names as parent.
    StateId
}

/// One running copy of a release, named by the planner: `SERVICE-ENVIRONMENT-RELEASE-SERIAL`.
/// Never used twice, so it also names the instance's cgroup, folder and log. As it becomes a part of paths, it has only
/// lower-case letters, digits and hyphens, and starts with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

/// Two names of 40 characters, two numbers of 20 digits, three hyphens, rounded up.
const INSTANCE_ID_LENGTH: usize = 128;

/// Why a text is no instance's id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` is not the id of an instance: it is SERVICE-ENVIRONMENT-RELEASE-SERIAL, of lower-case letters, digits and \
     hyphens (`kiln status` shows them)"
)]
pub struct InstanceIdError {
    pub text: String,
}

impl InstanceId {
    /// The id of the service's instance with this serial number.
    pub fn of(service: &ServiceKey, release: ReleaseNumber, serial: u64) -> Self {
        let ServiceKey {
            environment,
            service,
        } = service;
        Self(format!("{service}-{environment}-{release}-{serial}"))
    }

    /// An id that is written out in the code. What comes from outside is parsed.
    ///
    /// # Panics
    /// If it is not valid.
    #[track_caller]
    pub fn new(id: impl Into<String>) -> Self {
        match Self::try_from(id.into()) {
            Ok(id) => id,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can be one of the service's.
    pub fn is_of(&self, service: &ServiceKey) -> bool {
        let ServiceKey {
            environment,
            service,
        } = service;
        let rest = self.0.strip_prefix(&format!("{service}-{environment}-"));
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        rest.and_then(|rest| rest.split_once('-'))
            .is_some_and(|(release, serial)| is_number(release) && is_number(serial))
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InstanceIdError;

    fn try_from(text: String) -> Result<Self, InstanceIdError> {
        let is_valid = text.len() <= INSTANCE_ID_LENGTH
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_valid {
            Ok(Self(text))
        } else {
            Err(InstanceIdError { text })
        }
    }
}

impl FromStr for InstanceId {
    type Err = InstanceIdError;

    fn from_str(text: &str) -> Result<Self, InstanceIdError> {
        text.to_owned().try_into()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_is_no_path() {
        let key: ServiceKey = "staging/api".to_owned().try_into().unwrap();
        let id = InstanceId::of(&key, ReleaseNumber(7), 12);
        assert_eq!(id.as_str(), "api-staging-7-12");
        assert!(id.is_of(&key));
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        let other: ServiceKey = "dev/api-staging".to_owned().try_into().unwrap();
        assert!(!id.is_of(&other));
        assert!(!InstanceId::new("api-staging-7").is_of(&key));
        let long = "a".repeat(INSTANCE_ID_LENGTH);
        assert!(long.parse::<InstanceId>().is_ok());
        for bad in [
            "",
            "../../x",
            "a/b",
            ".",
            "-a",
            "1a",
            "A",
            "a b",
            "a\0",
            &format!("{long}a"),
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<InstanceId>(&json).is_err(), "{bad}");
        }
    }
}
