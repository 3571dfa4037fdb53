//! What an image has to do before it gets its tag: `test` blocks of a definition.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Tmpfs, duration_ms};

/// Everything in it has to hold of the image as it will run: its user, its environment, a root that can't be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSpec {
    pub name: String,
    /// Of each command, and until HTTP and ports have to be right.
    #[serde(with = "duration_ms")]
    pub timeout: Duration,
    /// On top of the image's.
    pub env: BTreeMap<String, String>,
    /// The services' that run the image, where they agree: `PORT` while the test runs.
    pub port: Option<u16>,
    /// The services' that run the image.
    pub tmpfs: BTreeMap<String, Tmpfs>,
    pub commands: Vec<CommandCheck>,
    pub http: Vec<HttpCheck>,
    /// What the image's own command listens on.
    pub ports: Vec<u16>,
    /// By absolute path.
    pub files: BTreeMap<String, FileCheck>,
    pub present: Vec<String>,
    pub absent: Vec<String>,
    pub packages: Vec<String>,
    pub packages_absent: Vec<String>,
}

/// A command instead of the image's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandCheck {
    pub argv: Vec<String>,
    /// `None`: the image's.
    pub user: Option<String>,
    pub exit: u8,
    pub stdout: TextCheck,
    pub stderr: TextCheck,
}

/// What a text has to be; the default is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextCheck {
    pub contains: Vec<String>,
    /// Regular expressions, each of which is found in it.
    pub matches: Vec<String>,
    /// All of it, but for one line feed at the end.
    pub equals: Option<String>,
}

/// A GET request to the image's own command. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    pub path: String,
    /// `None`: that of the test.
    pub port: Option<u16>,
    pub status: u16,
    pub body: TextCheck,
    /// Values by name; of several headers of a name, one has to be it.
    pub headers: BTreeMap<String, String>,
}

/// A file, folder or link of the image; links are followed inside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileCheck {
    /// A name or a number, as is `group`.
    pub owner: Option<String>,
    pub group: Option<String>,
    pub mode: Option<u32>,
    pub content: TextCheck,
}
