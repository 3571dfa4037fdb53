//! What an instance *is*.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CanonicalError, Digest, canonical_json};

/// What an instance *is*: everything that, when it differs, needs another instance.
///
/// Defaults are omitted from the serialised form, so that a field added by a later kiln changes the
/// identity of no release that does not use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The manifest digest of the image.
    pub image: Digest,
    /// The whole argument vector: the image's entry point and command, or the service's own.
    pub command: Vec<String>,
    /// The image's environment with the service's on top.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `""` (root), a name, `uid` or `uid:gid`, looked up inside the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Absolute; `""` is `/`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// `""` is `SIGTERM`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// The port that the instance listens on; a worker has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// By absolute path inside the instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, Tmpfs>,
    #[serde(default, skip_serializing_if = "Resources::is_default")]
    pub resources: Resources,
    /// Whether instances reach anything but the services of their environment.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub egress: bool,
}

fn yes() -> bool {
    true
}

/// A writable file system in memory, seeded with what the image has at its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Bytes.
    pub size: u64,
}

/// Limits; `None` is no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Bytes, tmpfs and page cache of the instance counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

impl Resources {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The identity of a release: the SHA-256 of its canonical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseId(pub Digest);

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Release {
    pub fn id(&self) -> Result<ReleaseId, CanonicalError> {
        canonical_json(self).map(|json| ReleaseId(Digest::of(&json)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario 26: an upgrade of kiln itself does not change release identities and so redeploys nothing.
    #[test]
    fn an_upgrade_of_kiln_does_not_change_release_identities() {
        let bare = Release {
            image: Digest::of(b"image"),
            command: vec!["/bin/app".into()],
            env: BTreeMap::new(),
            user: String::new(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: None,
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
        };
        // Fixed for ever: these two are the identities that the first kiln gave.
        assert_eq!(
            String::from_utf8(canonical_json(&bare).unwrap()).unwrap(),
            format!(
                r#"{{"command":["/bin/app"],"image":"{}"}}"#,
                Digest::of(b"image")
            )
        );
        let full = Release {
            env: BTreeMap::from([("A".into(), "1".into())]),
            user: "app".into(),
            workdir: "/srv".into(),
            stop_signal: "SIGQUIT".into(),
            port: Some(3000),
            tmpfs: BTreeMap::from([("/tmp".into(), Tmpfs { size: 1 })]),
            resources: Resources {
                memory: Some(1),
                cpu_millis: Some(500),
                pids: Some(9),
            },
            egress: false,
            ..bare
        };
        assert_eq!(
            String::from_utf8(canonical_json(&full).unwrap()).unwrap(),
            format!(
                concat!(
                    r#"{{"command":["/bin/app"],"egress":false,"env":{{"A":"1"}},"image":"{}","port":3000,"#,
                    r#""resources":{{"cpu_millis":500,"memory":1,"pids":9}},"stop_signal":"SIGQUIT","#,
                    r#""tmpfs":{{"/tmp":{{"size":1}}}},"user":"app","workdir":"/srv"}}"#
                ),
                Digest::of(b"image")
            )
        );
    }
}
