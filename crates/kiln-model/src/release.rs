//! What an instance *is*.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CanonicalError, Digest, UnknownFields, canonical_json};

/// What an instance *is*: everything that, when it differs, needs another instance.
///
/// Defaults are omitted from the serialised form, so that a field added by a later kiln changes the
/// identity of no release that does not use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Of a release that a newer kiln wrote: part of its identity. This kiln starts no instance of such a release.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

fn yes() -> bool {
    true
}

/// A writable file system in memory, seeded with what the image has at its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Bytes.
    pub size: u64,
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Tmpfs {
    /// Of so many bytes.
    pub fn of(size: u64) -> Self {
        Self {
            size,
            unknown: UnknownFields::default(),
        }
    }
}

/// Limits; `None` is no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(flatten)]
    pub unknown: UnknownFields,
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

    /// This kiln knows everything that the release says, so that it can start instances of it.
    pub fn is_known(&self) -> bool {
        self.unknown.is_empty()
            && self.resources.unknown.is_empty()
            && self.tmpfs.values().all(|tmpfs| tmpfs.unknown.is_empty())
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
            unknown: UnknownFields::default(),
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
            tmpfs: BTreeMap::from([("/tmp".into(), Tmpfs::of(1))]),
            resources: Resources {
                memory: Some(1),
                cpu_millis: Some(500),
                pids: Some(9),
                unknown: UnknownFields::default(),
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

    /// A release of a newer kiln is kept whole: its identity and its members survive this kiln's journal.
    #[test]
    fn a_release_of_a_newer_kiln_keeps_its_identity() {
        let json = format!(
            r#"{{"command":["/bin/app"],"image":"{}","mounts":{{"/data":{{"volume":"v"}}}},"resources":{{"gpus":1}}}}"#,
            Digest::of(b"image")
        );
        let release: Release = serde_json::from_str(&json).unwrap();
        assert_eq!(release.unknown.names().collect::<Vec<_>>(), ["mounts"]);
        assert!(!release.is_known());
        assert_eq!(
            String::from_utf8(canonical_json(&release).unwrap()).unwrap(),
            json
        );
        assert_eq!(release.id().unwrap().0, Digest::of(json.as_bytes()));
    }
}
