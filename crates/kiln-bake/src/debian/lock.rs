//! `kiln.lock`: the exact packages of each image, so that the same bake gives the same image on another day and machine. It
//! names no mirror and no credentials.

use std::collections::BTreeMap;
use std::fmt;

use kiln_model::{CanonicalError, Digest, ImageName, ImageSpec, canonical_json};
use serde::{Deserialize, Serialize};

use crate::error::BakeError;

/// Of the file, and part of every base's key.
const FORMAT: u32 = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// What the layers of the images are written with: another version gives the same files, and another digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compressor: Option<String>,
    /// The version of the tar writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tar: Option<u32>,
    pub(crate) images: BTreeMap<ImageName, ImageLock>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageLock {
    pub(crate) suite: String,
    pub(crate) arch: String,
    /// As the definition asks, ordered.
    pub(crate) requested: Vec<String>,
    /// What else it asks, where that is not the usual.
    #[serde(default, skip_serializing_if = "Options::is_usual")]
    pub(crate) options: Options,
    /// Suites of updates and security fixes that the archive does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) absent: Vec<String>,
    /// Seconds since 1970: the newest signed date of the archive, and the latest time of any file in the image.
    pub(crate) date: i64,
    /// In the order in which they are unpacked; those of the base first.
    pub(crate) packages: Vec<LockedPackage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Empty: `main`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) components: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) recommends: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) without_updates: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) without_security: bool,
    /// The last part of the snapshot's address, which is its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<String>,
}

impl Options {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockedPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) sha256: Digest,
    pub(crate) size: u64,
    /// Below the archive's root.
    pub(crate) path: String,
    /// Essential, or needed by what is: configured first, alone, and a layer of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) base: bool,
}

impl ImageLock {
    /// What the packages are known by.
    pub(crate) fn digest(&self) -> Result<Digest, CanonicalError> {
        canonical_json(self).map(|json| Digest::of(&json))
    }

    /// Of an image that starts from nothing. Tar and many tools know no time before 1980.
    pub(crate) fn nothing(arch: &str) -> Self {
        Self {
            suite: String::new(),
            arch: arch.to_owned(),
            requested: Vec::new(),
            options: Options::default(),
            absent: Vec::new(),
            date: 315_532_800,
            packages: Vec::new(),
        }
    }

    /// The packages of the base, and those over it.
    pub(crate) fn split(&self) -> (&[LockedPackage], &[LockedPackage]) {
        let base = self.packages.iter().take_while(|one| one.base).count();
        self.packages.split_at(base)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("kiln.lock can't be understood: delete it, and the next bake writes it anew")]
    Syntax(#[source] serde_json::Error),
    #[error(
        "kiln.lock has format {found}, and this kiln knows format {FORMAT}: {}",
        if *.found < FORMAT { "delete the file, and the next bake writes it anew" } else { "use a newer kiln" }
    )]
    Format { found: u32 },
}

impl Lock {
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let lock: Self = serde_json::from_str(text).map_err(LockError::Syntax)?;
        if lock.format != FORMAT {
            return Err(LockError::Format { found: lock.format });
        }
        Ok(lock)
    }

    /// What the packages of `image` are known by in its provenance.
    pub fn digest_of(&self, image: &ImageSpec) -> Option<Digest> {
        let base = image.chain().first().map_or(&image.name, |base| &base.name);
        self.images.get(base)?.digest().ok()
    }

    /// The files of all packages, by their content.
    pub fn packages(&self) -> impl Iterator<Item = Digest> {
        let images = self.images.values();
        images.flat_map(|image| image.packages.iter().map(|package| package.sha256))
    }

    /// Whether one of the images has a package of that name.
    pub fn has(&self, package: &str) -> bool {
        let mut all = self.images.values().flat_map(|image| &image.packages);
        all.any(|one| one.name == package)
    }

    /// What another version of kiln wrote layers with, as far as that is not what this one does.
    pub fn other_writer(&self) -> Option<String> {
        let compressor = self.compressor.as_ref();
        let compressor = compressor.filter(|written| **written != kiln_oci::compressor());
        let tar = self
            .tar
            .filter(|written| *written != kiln_oci::tar::VERSION);
        let tar = tar.map(|version| format!("version {version} of the tar writer"));
        let both: Vec<String> = tar.into_iter().chain(compressor.cloned()).collect();
        (!both.is_empty()).then(|| both.join(" and "))
    }

    /// The same packages, as this version of kiln writes the images.
    #[must_use]
    pub fn by_this_version(self) -> Self {
        let is_used = !self.images.is_empty();
        Self {
            compressor: is_used.then(kiln_oci::compressor),
            tar: is_used.then_some(kiln_oci::tar::VERSION),
            ..self
        }
    }

    pub(crate) fn with(&self, image: &ImageName, packages: ImageLock) -> Self {
        let mut images = self.images.clone();
        images.insert(image.clone(), packages);
        Self {
            format: FORMAT,
            // The first image decides; what is said of others is not changed in passing.
            compressor: Some(match &self.compressor {
                Some(written) => written.clone(),
                None => kiln_oci::compressor(),
            }),
            tar: Some(self.tar.unwrap_or(kiln_oci::tar::VERSION)),
            images,
        }
    }
}

/// JSON with one package a line, so that a difference is read by package.
impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = |value: &dyn erased::Json| value.json();
        writeln!(f, "{{\n  \"format\": {FORMAT},")?;
        if let Some(compressor) = &self.compressor {
            writeln!(f, "  \"compressor\": {},", json(compressor))?;
        }
        if let Some(tar) = self.tar {
            writeln!(f, "  \"tar\": {tar},")?;
        }
        writeln!(f, "  \"images\": {{")?;
        for (index, (name, image)) in self.images.iter().enumerate() {
            let ImageLock {
                suite,
                arch,
                requested,
                options,
                absent,
                date,
                packages,
            } = image;
            writeln!(f, "    {}: {{", json(name))?;
            writeln!(
                f,
                "      \"suite\": {},\n      \"arch\": {},",
                json(suite),
                json(arch)
            )?;
            writeln!(f, "      \"requested\": {},", json(requested))?;
            if !options.is_usual() {
                writeln!(f, "      \"options\": {},", json(options))?;
            }
            if !absent.is_empty() {
                writeln!(f, "      \"absent\": {},", json(absent))?;
            }
            writeln!(f, "      \"date\": {date},")?;
            writeln!(f, "      \"packages\": [")?;
            for (index, package) in packages.iter().enumerate() {
                let comma = if index + 1 < packages.len() { "," } else { "" };
                writeln!(f, "        {}{comma}", json(package))?;
            }
            let comma = if index + 1 < self.images.len() {
                ","
            } else {
                ""
            };
            writeln!(f, "      ]\n    }}{comma}")?;
        }
        writeln!(f, "  }}\n}}")
    }
}

mod erased {
    use serde::Serialize;

    pub(super) trait Json {
        fn json(&self) -> String;
    }

    impl<T: Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).expect("names, numbers and lists of them are JSON")
        }
    }
}

/// The error of a package that is not what Debian's policy says.
pub(crate) fn damaged(package: &LockedPackage) -> impl Fn(String) -> BakeError {
    let package = format!("{} {}", package.name, package.version);
    move |reason| BakeError::Package {
        package: package.clone(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_a_package_is_a_line() {
        let package = LockedPackage {
            name: "a".into(),
            version: "1".into(),
            arch: "amd64".into(),
            sha256: Digest::of(b"a"),
            size: 1,
            path: "pool/a.deb".into(),
            base: false,
        };
        let image = ImageLock {
            suite: "s".into(),
            arch: "amd64".into(),
            requested: vec!["a".into()],
            options: Options::default(),
            absent: Vec::new(),
            date: 7,
            packages: vec![package.clone(), package],
        };
        let mut other = image.clone();
        other.options.snapshot = Some("20260901T000000Z".into());
        other.absent = vec!["s-updates".into(), "s-security".into()];
        let lock = Lock::default()
            .with(&"x".parse().unwrap(), image)
            .with(&"y".parse().unwrap(), other);
        let text = lock.to_string();
        assert_eq!(Lock::parse(&text).unwrap(), lock);
        assert_eq!(
            text.lines()
                .filter(|line| line.contains("pool/a.deb"))
                .count(),
            4
        );
        let own = kiln_oci::compressor();
        assert!(text.contains(&format!("\n  \"compressor\": \"{own}\",\n")));
        assert_eq!(lock.other_writer(), None);
        let version = kiln_oci::tar::VERSION;
        let own_tar = format!("  \"tar\": {version},\n");
        assert!(text.contains(&own_tar));
        let other = Lock::parse(&text.replace(&own, "zstd 0.1")).unwrap();
        assert_eq!(other.other_writer().as_deref(), Some("zstd 0.1"));
        assert_eq!(other.by_this_version(), lock);
        let other = Lock::parse(&text.replace(&own_tar, "  \"tar\": 0,\n")).unwrap();
        let said = "version 0 of the tar writer";
        assert_eq!(other.other_writer().as_deref(), Some(said));
        assert_eq!(other.by_this_version(), lock);
        // As before it was written down.
        let line = format!("  \"compressor\": \"{own}\",\n");
        let before = text.replace(&line, "").replace(&own_tar, "");
        assert_eq!(Lock::parse(&before).unwrap().other_writer(), None);
        assert!(matches!(Lock::parse("{}"), Err(LockError::Syntax(_))));
        assert!(matches!(
            Lock::parse(r#"{"format":9,"images":{}}"#),
            Err(LockError::Format { found: 9 })
        ));
    }
}
