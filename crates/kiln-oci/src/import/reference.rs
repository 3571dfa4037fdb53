//! `oci:DIR`, `oci-archive:FILE` and `docker-archive:FILE`, each with `:TAG` or `@DIGEST`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use kiln_model::Digest;

use super::ImportError;

/// An image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveReference {
    pub(super) kind: ArchiveKind,
    /// The path, and perhaps a tag: a `:` may be of either.
    rest: String,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArchiveKind {
    OciLayout,
    OciArchive,
    DockerArchive,
}

/// Which image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The only one.
    Only,
    Tag(String),
    Digest(Digest),
}

impl ArchiveReference {
    /// Whether `text` is meant as one: the name of an image never begins so.
    pub fn is_one(text: &str) -> bool {
        ["oci:", "oci-archive:", "docker-archive:"]
            .iter()
            .any(|kind| text.starts_with(kind))
    }

    /// Whether it is one image for good, whatever becomes of the archive.
    pub fn is_pinned(&self) -> bool {
        self.rest.contains("@sha256:")
    }

    /// The same, with a path that is not absolute counted from `folder`.
    pub fn below(&self, folder: &Path) -> String {
        let kind = self.text.split(':').next().unwrap_or_default();
        match self.rest.strip_prefix('/') {
            Some(_) => self.text.clone(),
            None => format!("{kind}:{}/{}", folder.display(), self.rest),
        }
    }

    pub(super) fn split(&self) -> Result<(PathBuf, Wanted), ImportError> {
        let (rest, digest) = match self.rest.rsplit_once("@sha256:") {
            Some((rest, hex)) => {
                let digest = Digest::from_hex(hex).map_err(|_| ImportError::Reference {
                    text: self.text.clone(),
                })?;
                (rest, Some(digest))
            }
            None => (self.rest.as_str(), None),
        };
        let ends = rest.match_indices(':').map(|(at, _)| at);
        let mut ends: Vec<usize> = ends.chain([rest.len()]).collect();
        ends.reverse();
        // The longest that is there; where none is, the error is about the shortest.
        let end = ends
            .iter()
            .copied()
            .find(|end| Path::new(&rest[..*end]).exists())
            .or(ends.last().copied())
            .unwrap_or(rest.len());
        let tag = rest[end..].strip_prefix(':').unwrap_or_default();
        let wanted = match (digest, tag) {
            (Some(digest), _) => Wanted::Digest(digest),
            (None, "") => Wanted::Only,
            (None, tag) => Wanted::Tag(tag.to_owned()),
        };
        Ok((PathBuf::from(&rest[..end]), wanted))
    }
}

impl std::fmt::Display for ArchiveReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ArchiveReference {
    type Err = ImportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = match text.split_once(':') {
            Some(("oci", rest)) => (ArchiveKind::OciLayout, rest),
            Some(("oci-archive", rest)) => (ArchiveKind::OciArchive, rest),
            Some(("docker-archive", rest)) => (ArchiveKind::DockerArchive, rest),
            _ => (ArchiveKind::OciLayout, ""),
        };
        if rest.is_empty() {
            return Err(ImportError::Reference {
                text: text.to_owned(),
            });
        }
        Ok(Self {
            kind,
            rest: rest.to_owned(),
            text: text.to_owned(),
        })
    }
}

impl Wanted {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Only => String::new(),
            Self::Tag(tag) => tag.clone(),
            Self::Digest(digest) => digest.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_is_of_the_path_where_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().display().to_string();
        std::fs::write(format!("{folder}/a"), "").unwrap();
        std::fs::write(format!("{folder}/b:1"), "").unwrap();
        let hex = "0".repeat(64);
        for (rest, path, wanted) in [
            ("a", "a", Wanted::Only),
            ("a:debian:12", "a", Wanted::Tag("debian:12".into())),
            ("b:1", "b:1", Wanted::Only),
            ("b:1:x", "b:1", Wanted::Tag("x".into())),
            ("none:x:y", "none", Wanted::Tag("x:y".into())),
            (
                &format!("a@sha256:{hex}"),
                "a",
                Wanted::Digest(Digest::from_hex(&hex).unwrap()),
            ),
        ] {
            let text = format!("oci-archive:{folder}/{rest}");
            let reference: ArchiveReference = text.parse().unwrap();
            let expected = (PathBuf::from(format!("{folder}/{path}")), wanted);
            assert_eq!(reference.split().unwrap(), expected, "{rest}");
        }
        for wrong in ["oci:", "tar:x", "x"] {
            assert!(wrong.parse::<ArchiveReference>().is_err(), "{wrong}");
        }
    }
}
