//! What is different between two images: packages, files, configuration, size.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{Entry, Image, Kind, Store, Tree};
use serde::Serialize;

use crate::debian::changelog;
use crate::debian::status::{self, Package};
use crate::error::BakeError;

/// From one image to another. Everything is ordered by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageDiff {
    pub from: Digest,
    pub to: Digest,
    pub packages: Vec<Changed>,
    pub files: Vec<FileChange>,
    pub config: Vec<Changed>,
    /// The layers that only one of the two has, from below.
    pub layers_removed: Vec<LayerSize>,
    pub layers_added: Vec<LayerSize>,
}

/// `None`: it was not there, or is there no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
    /// Of a package: the CVE names that its changelog in the newer image has since the older one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cves: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute.
    pub path: String,
    pub change: Change,
    /// What of it changed: `kind`, `content`, `mode`, `owner`, `attributes`; empty unless it did.
    pub what: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerSize {
    pub diff_id: Digest,
    /// Compressed, in bytes.
    pub size: u64,
}

/// Compares two images of the store. Times of files are not compared: they say when, not what.
pub fn diff(store: &Store, from: &Digest, to: &Digest) -> Result<ImageDiff, BakeError> {
    let (old, new) = (store.image(from)?, store.image(to)?);
    let (layers_removed, layers_added) = (only_in(&old, &new), only_in(&new, &old));
    let config = changed(&settings(&old), &settings(&new));
    let (packages, files) = if layers_removed.is_empty() && layers_added.is_empty() {
        Default::default()
    } else {
        let (old, new) = (merged(store, &old)?, merged(store, &new)?);
        (package_changes(&old, &new)?, files(&old, &new)?)
    };
    Ok(ImageDiff {
        from: *from,
        to: *to,
        packages,
        files,
        config,
        layers_removed,
        layers_added,
    })
}

fn only_in(image: &Image, other: &Image) -> Vec<LayerSize> {
    let others: BTreeSet<Digest> = other.layers.iter().map(|layer| layer.diff_id).collect();
    let own = image.layers.iter();
    own.filter(|layer| !others.contains(&layer.diff_id))
        .map(|layer| LayerSize {
            diff_id: layer.diff_id,
            size: layer.blob.size,
        })
        .collect()
}

fn merged(store: &Store, image: &Image) -> Result<Tree, BakeError> {
    Ok(Tree::merge(&store.layer_trees(image)?)?)
}

pub(crate) fn changed(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> Vec<Changed> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| Changed {
            name: name.clone(),
            from: old.get(name).cloned(),
            to: new.get(name).cloned(),
            cves: Vec::new(),
        })
        .collect()
}

/// What instances of the image start with, by name.
fn settings(image: &Image) -> BTreeMap<String, String> {
    let run = &image.config.config;
    let mut all = BTreeMap::new();
    let words = |words: &[String]| (!words.is_empty()).then(|| format!("{words:?}"));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    for (name, value) in [
        ("architecture", text(&image.config.architecture)),
        ("user", text(&run.user)),
        ("entrypoint", words(&run.entrypoint)),
        ("cmd", words(&run.cmd)),
        ("workdir", text(&run.working_dir)),
        ("stop_signal", run.stop_signal.clone()),
    ] {
        all.extend(value.map(|value| (name.to_owned(), value)));
    }
    for pair in &run.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.insert(format!("env {name}"), value.to_owned());
    }
    for (name, value) in &run.labels {
        all.insert(format!("label {name}"), value.clone());
    }
    for port in run.exposed_ports.keys() {
        all.insert(format!("port {port}"), "exposed".to_owned());
    }
    for path in run.volumes.keys() {
        all.insert(format!("volume {path}"), "declared".to_owned());
    }
    all
}

fn package_changes(old: &Tree, new: &Tree) -> Result<Vec<Changed>, BakeError> {
    let (before, after) = (packages(old)?, packages(new)?);
    let versions = |packages: &BTreeMap<String, Package>| {
        let version =
            |(name, package): (&String, &Package)| (name.clone(), package.version.clone());
        packages.iter().map(version).collect()
    };
    let mut changes = changed(&versions(&before), &versions(&after));
    for change in &mut changes {
        if let (Some(before), Some(after)) = (before.get(&change.name), after.get(&change.name)) {
            let (_, from) = &before.source;
            let mended = changelog::mended_in_image(new, &after.name, from);
            change.cves = mended.into_iter().collect();
        }
    }
    Ok(changes)
}

/// By name; a package of several architectures by `name:arch`.
fn packages(tree: &Tree) -> Result<BTreeMap<String, Package>, BakeError> {
    let path = Path::new("var/lib/dpkg/status");
    let Some(Kind::File { content, size }) = tree.get(path).map(|entry| &entry.kind) else {
        return Ok(BTreeMap::new());
    };
    let mut bytes = vec![0; usize::try_from((*size).min(status::STATUS_MAX)).unwrap_or(0)];
    let count = content
        .open()
        .and_then(|file| file.read_within(*size, &mut bytes, 0))
        .map_err(BakeError::io(path))?;
    let mut packages = BTreeMap::new();
    for package in status::packages(&String::from_utf8_lossy(&bytes[..count])) {
        let name = if packages.contains_key(&package.name) {
            format!("{}:{}", package.name, package.arch)
        } else {
            package.name.clone()
        };
        packages.insert(name, package);
    }
    Ok(packages)
}

fn files(old: &Tree, new: &Tree) -> Result<Vec<FileChange>, BakeError> {
    let (old, new): (BTreeMap<_, _>, BTreeMap<_, _>) = (old.iter().collect(), new.iter().collect());
    let paths: BTreeSet<&Path> = old.keys().chain(new.keys()).copied().collect();
    let mut all = Vec::new();
    for path in paths {
        let (change, what) = match (old.get(path), new.get(path)) {
            (None, Some(_)) => (Change::Added, Vec::new()),
            (Some(before), Some(after)) => {
                let what = differs(path, before, after, &old, &new)?;
                if what.is_empty() {
                    continue;
                }
                (Change::Changed, what)
            }
            (Some(_), None) => (Change::Removed, Vec::new()),
            (None, None) => continue,
        };
        all.push(FileChange {
            path: Path::new("/").join(path).to_string_lossy().into_owned(),
            change,
            what,
        });
    }
    Ok(all)
}

type Entries<'a> = BTreeMap<&'a Path, &'a Entry>;

fn differs(
    path: &Path,
    before: &Entry,
    after: &Entry,
    old: &Entries<'_>,
    new: &Entries<'_>,
) -> Result<Vec<&'static str>, BakeError> {
    // Other names of a file are compared as that file.
    let (before, after) = (holder(before, old), holder(after, new));
    let mut what = Vec::new();
    let content = match (&before.kind, &after.kind) {
        (Kind::Dir { .. }, Kind::Dir { .. }) | (Kind::Fifo, Kind::Fifo) => None,
        (
            Kind::File { content, size },
            Kind::File {
                content: other,
                size: other_size,
            },
        ) => {
            let same = size == other_size && same_content(content, other, *size, path)?;
            (!same).then_some("content")
        }
        (Kind::Symlink { target }, Kind::Symlink { target: other }) => {
            (target != other).then_some("content")
        }
        (
            Kind::CharDev { major, minor } | Kind::BlockDev { major, minor },
            Kind::CharDev {
                major: other,
                minor: other_minor,
            }
            | Kind::BlockDev {
                major: other,
                minor: other_minor,
            },
        ) => {
            let same_kind =
                std::mem::discriminant(&before.kind) == std::mem::discriminant(&after.kind);
            let same = same_kind && (major, minor) == (other, other_minor);
            (!same).then_some("kind")
        }
        _ => Some("kind"),
    };
    what.extend(content);
    if before.mode != after.mode {
        what.push("mode");
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        what.push("owner");
    }
    if before.xattrs != after.xattrs {
        what.push("attributes");
    }
    Ok(what)
}

fn holder<'a>(entry: &'a Entry, entries: &Entries<'a>) -> &'a Entry {
    match &entry.kind {
        Kind::Hardlink { target } => entries.get(target.as_path()).copied().unwrap_or(entry),
        _ => entry,
    }
}

fn same_content(
    one: &kiln_oci::Content,
    other: &kiln_oci::Content,
    size: u64,
    path: &Path,
) -> Result<bool, BakeError> {
    let compare = || -> std::io::Result<bool> {
        let (one, other) = (one.open()?, other.open()?);
        let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut at = 0;
        loop {
            let count = one.read_within(size, &mut left, at)?;
            let there = other.read_within(size, &mut right, at)?;
            if left[..count] != right[..there] {
                return Ok(false);
            }
            if count == 0 {
                return Ok(true);
            }
            at += count as u64;
        }
    };
    compare().map_err(BakeError::io(path))
}

#[cfg(test)]
mod tests {
    use kiln_oci::{ImageConfig, RunConfig};

    use super::*;

    fn image(store: &Store, env: &str, files: &[(&str, &str, u32)]) -> Digest {
        let mut tree = Tree::new();
        for (path, text, mode) in files {
            let entry = Entry::bytes(text.as_bytes(), *mode);
            tree.insert(path, entry).unwrap();
        }
        image_of(store, env, &tree)
    }

    fn image_of(store: &Store, env: &str, tree: &Tree) -> Digest {
        let layer = store.add_layer(tree).unwrap();
        let config = ImageConfig {
            config: RunConfig {
                env: vec![env.to_owned()],
                ..RunConfig::default()
            },
            ..ImageConfig::default()
        };
        store.put_image(&config, &[layer]).unwrap()
    }

    fn status(packages: &[(&str, &str)]) -> String {
        let paragraph = |(name, version): &(&str, &str)| {
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: all\n\n"
            )
        };
        packages.iter().map(paragraph).collect()
    }

    #[test]
    fn packages_files_and_configuration_are_told_by_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let before = status(&[("gone", "1"), ("kept", "1"), ("raised", "1")]);
        let after = status(&[("kept", "1"), ("new", "2"), ("raised", "2")]);
        let path = "var/lib/dpkg/status";
        let old = image(
            &store,
            "A=1",
            &[
                (path, &before, 0o644),
                ("a", "same", 0o644),
                ("b", "1", 0o644),
                ("c", "", 0o600),
            ],
        );
        let new = image(
            &store,
            "A=2",
            &[
                (path, &after, 0o644),
                ("a", "same", 0o644),
                ("b", "2", 0o755),
                ("d", "", 0o600),
            ],
        );
        let found = diff(&store, &old, &new).unwrap();
        let told = |changes: &[Changed]| -> Vec<String> {
            let text = |value: &Option<String>| value.clone().unwrap_or("-".into());
            let line =
                |one: &Changed| format!("{} {} {}", one.name, text(&one.from), text(&one.to));
            changes.iter().map(line).collect()
        };
        assert_eq!(told(&found.packages), ["gone 1 -", "new - 2", "raised 1 2"]);
        assert_eq!(told(&found.config), ["env A 1 2"]);
        let files: Vec<_> = found
            .files
            .iter()
            .map(|one| (one.path.as_str(), one.change, one.what.as_slice()))
            .collect();
        assert_eq!(
            files,
            [
                ("/b", Change::Changed, &["content", "mode"][..]),
                ("/c", Change::Removed, &[]),
                ("/d", Change::Added, &[]),
                ("/var/lib/dpkg/status", Change::Changed, &["content"]),
            ]
        );
        assert_eq!(
            (found.layers_removed.len(), found.layers_added.len()),
            (1, 1)
        );
        let same = diff(&store, &old, &old).unwrap();
        assert!(same.packages.is_empty() && same.files.is_empty() && same.config.is_empty());
    }

    #[test]
    fn security_fixes_of_packages_are_named_by_the_newer_images_changelogs() {
        use std::io::Read;

        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let paragraph = |name: &str, version: &str, source: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: all\n{source}\n"
            )
        };
        let text = "src (1:3) s; urgency=high\n\n  * CVE-2026-0003\n\nsrc (1:2) s; urgency=low\n\n  * CVE-2026-0002\n\nsrc (1:1) s; urgency=low\n\n  * CVE-2026-0001\n";
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::fast())
            .read_to_end(&mut packed)
            .unwrap();
        let build = |version: &str, source: &str| {
            let status = [
                paragraph("linked", version, source),
                paragraph("lone", version, source),
                paragraph("slim", version, source),
                paragraph("own", version, source),
            ]
            .concat();
            let mut tree = Tree::new();
            let mut put = |path: &str, entry: Entry| tree.insert(path, entry).unwrap();
            put(
                "var/lib/dpkg/status",
                Entry::bytes(status.as_bytes(), 0o644),
            );
            let changelog = || Entry::bytes(&packed[..], 0o644);
            put("usr/share/doc/own/changelog.Debian.gz", changelog());
            put("usr/share/doc/linked", Entry::symlink("own"));
            let to = "../own/changelog.Debian.gz";
            put("usr/share/doc/lone/changelog.Debian.gz", Entry::symlink(to));
            tree
        };
        // Its packages have another version than their source.
        let old = image_of(&store, "A=1", &build("9", "Source: src (1:1)\n"));
        let new = image_of(&store, "A=1", &build("10", "Source: src (1:3)\n"));
        let told = |from: &Digest, to: &Digest| -> Vec<String> {
            let found = diff(&store, from, to).unwrap().packages;
            found
                .iter()
                .map(|one| format!("{} {}", one.name, one.cves.join(",")))
                .collect()
        };
        let both = "CVE-2026-0002,CVE-2026-0003";
        assert_eq!(
            told(&old, &new),
            [
                format!("linked {both}"),
                format!("lone {both}"),
                format!("own {both}"),
                "slim ".to_owned()
            ]
        );
        assert!(told(&new, &old).iter().all(|line| !line.contains("CVE")));
    }
}
