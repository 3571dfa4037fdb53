//! What a definition asks for, resolved: no expression, no variable and no default is left open.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    Digest, EnvName, ImageName, Policy, ProjectName, Release, Resources, ServiceName, TestSpec,
    Timestamp, Tmpfs,
};

/// A whole definition for one environment, as the command line read it. Images are not baked yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectSpec {
    pub project: ProjectName,
    pub environment: EnvName,
    /// Every environment that the definition names, in its order.
    pub environments: Vec<EnvName>,
    pub images: BTreeMap<ImageName, ImageSpec>,
    /// What the names of images in Dockerfiles mean.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bases: BTreeMap<String, BaseSpec>,
    pub services: BTreeMap<ServiceName, ServiceDefinition>,
}

/// What to bake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    pub name: ImageName,
    pub version: String,
    /// The image that it starts from, itself whole. Its steps come first; what is said below is already the sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Box<ImageSpec>>,
    /// With a base, that of the base; `None`: it starts from nothing, or is a Dockerfile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debian: Option<DebianSpec>,
    /// The image is all that this says: of the members below, only its tests and what is no leak are said besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<DockerfileSpec>,
    pub users: Vec<UserSpec>,
    pub copies: Vec<CopySpec>,
    /// Shell command lines, each a step.
    pub run: Vec<String>,
    /// The user of the `run` steps and of the instance; `None` is root.
    pub run_as: Option<String>,
    pub env: BTreeMap<String, String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// `None` is `/`.
    pub workdir: Option<String>,
    /// `None` is SIGTERM.
    pub stop_signal: Option<String>,
    /// `RULE:PLACE` of each secret-looking thing that is known and none.
    pub allow_leak: Vec<String>,
    /// All of them have to pass before the image gets its tag. Not those of its base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<TestSpec>,
}

impl ImageSpec {
    /// What it is made of, in the order of the steps: the image with `debian`, those that start from it, itself.
    pub fn chain(&self) -> Vec<&Self> {
        let mut chain: Vec<&Self> =
            std::iter::successors(Some(self), |image| image.base.as_deref()).collect();
        chain.reverse();
        chain
    }
}

/// Paths are relative to the definition's folder, and never outside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerfileSpec {
    pub file: String,
    pub context: String,
    /// The stage; `None` is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
}

/// What the name of an image in a Dockerfile means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseSpec {
    /// One of the definition.
    Image(ImageName),
    /// As of `--base NAME=REF`.
    Reference(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianSpec {
    pub suite: String,
    pub packages: Vec<String>,
    /// Of the archive, in the definition's order; never empty.
    pub components: Vec<String>,
    /// Debian's name of the processor. `None`: this machine's.
    pub arch: Option<String>,
    /// Whether what packages recommend comes too.
    pub recommends: bool,
    /// Whether the suites `SUITE-updates` and `SUITE-security` are looked at.
    pub updates: bool,
    pub security: bool,
    /// Whether documents, manuals and translations are left out.
    pub slim: bool,
    /// Whether the essential packages are in the image, and not only those asked for and what they need.
    pub essential: bool,
    pub origin: DebianOrigin,
    /// The keys that sign the archive, relative to the definition's folder. `None`: Debian's own.
    pub keyring: Option<String>,
}

impl DebianSpec {
    /// What a definition means that says the suite and nothing else.
    pub fn of(suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            packages: Vec::new(),
            components: vec!["main".to_owned()],
            arch: None,
            recommends: false,
            updates: true,
            security: true,
            slim: false,
            essential: true,
            origin: DebianOrigin::Machine,
            keyring: None,
        }
    }

    /// Whether it is never released, so that it has no suites of updates and security fixes.
    pub fn is_rolling(&self) -> bool {
        is_rolling(&self.suite)
    }

    /// The suite with its security fixes, where they are wanted.
    pub fn security_suite(&self) -> Option<String> {
        let has = self.security && !self.is_rolling();
        has.then(|| format!("{}-security", self.suite))
    }
}

/// Whether a suite of Debian's is never released.
pub fn is_rolling(suite: &str) -> bool {
    ["sid", "unstable", "experimental", "rc-buggy"].contains(&suite)
}

/// Where an archive is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DebianOrigin {
    /// The machine's own apt sources.
    Machine,
    Mirror {
        url: String,
        /// The archive of security fixes. `None`: `debian-security` beside it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        security: Option<String>,
    },
    /// An archive as it was at a time, which is never said to be out of date. `security`: the one of security fixes.
    Snapshot { url: String, security: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    pub name: String,
    pub uid: u32,
    /// The group has the user's name and, without `gid`, the uid's number.
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySpec {
    /// Relative to the definition's folder, never outside it. With a `/` at the end or naming a folder: its contents.
    pub from: String,
    /// Absolute.
    pub to: String,
    /// User name or number inside the image; `None` is root.
    pub owner: Option<String>,
}

/// A service as defined: names its image, so it becomes a [`ServiceSpec`] only when that is baked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceDefinition {
    pub image: ImageName,
    /// Replaces the image's entry point and command; empty keeps them.
    pub command: Vec<String>,
    /// On top of the image's.
    pub env: BTreeMap<String, String>,
    /// By the environment variable that holds it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretSpec>,
    pub port: Option<u16>,
    pub tmpfs: BTreeMap<String, Tmpfs>,
    pub resources: Resources,
    pub egress: bool,
    pub policy: Policy,
}

/// Where a secret is, and never what it is.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SecretSpec {
    /// Relative to the definition's folder, never outside it.
    pub file: String,
    /// Its name in the file; `None`: the file is the secret.
    pub key: Option<String>,
    /// Where it is was made of something sensitive, and is shown nowhere.
    pub sensitive: bool,
}

impl Serialize for SecretSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.sensitive {
            map.serialize_entry("sensitive", &true)?;
        } else {
            map.serialize_entry("file", &self.file)?;
            map.serialize_entry("key", &self.key)?;
        }
        map.end()
    }
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sensitive, &self.key) {
            (true, _) => f.write_str("a sensitive place"),
            (false, Some(key)) => write!(f, "file:{}#{key}", self.file),
            (false, None) => write!(f, "file:{}", self.file),
        }
    }
}

/// What the daemon is asked to run in one environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSpec {
    pub project: ProjectName,
    pub environment: EnvName,
    pub services: BTreeMap<ServiceName, ServiceSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    pub release: Release,
    pub policy: Policy,
    pub origin: ImageOrigin,
}

/// Where an image came from. Not part of a release: the same image from another commit is the same release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageOrigin {
    pub tag: String,
    pub digest: Digest,
    /// `None`: the definition is in no Git repository.
    pub commit: Option<String>,
    pub dirty: bool,
    pub baked_at: Timestamp,
}
