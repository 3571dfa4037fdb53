//! Whether a second bake gave the same image, and if not, what differs and why.

mod cause;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use kiln_model::Digest;
use kiln_oci::{Entry, Image, Kind, Layer, Store, Tree};
use serde::Serialize;

use crate::error::BakeError;
pub use cause::Circumstances;

/// Of a file, what is compared and searched for a cause.
const READ_MAX: u64 = 64 << 20;
/// More than the headers of any program.
const HEAD: usize = 4096;

/// Something that the second bake made otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// The name of the step whose layer it is in; `None`: it is in the configuration.
    pub step: Option<String>,
    /// Absolute, or the name of a setting.
    pub path: String,
    /// As a person reads it.
    pub cause: String,
}

impl Difference {
    /// Whether a step saw how the clock was moved: without that, it may do the same each time.
    pub fn is_of_moving_the_clock(&self) -> bool {
        self.cause.contains(cause::CLOCK_SEEN)
    }
}

/// Compares an image with what baking it again gave, in a store of its own. `steps`: the names of those that made the layers.
pub fn compare(
    first: (&Store, &Digest),
    second: (&Store, &Digest),
    steps: &[String],
    circumstances: &Circumstances,
) -> Result<Vec<Difference>, BakeError> {
    let (old, new) = (first.0.image(first.1)?, second.0.image(second.1)?);
    let mut found = Vec::new();
    for index in 0..old.layers.len().max(new.layers.len()) {
        let step = steps.get(index).cloned();
        let name = step.clone().unwrap_or_else(|| format!("layer {index}"));
        let whole = |cause: &str| Difference {
            step: Some(name.clone()),
            path: "/".to_owned(),
            cause: cause.to_owned(),
        };
        match (old.layers.get(index), new.layers.get(index)) {
            (Some(old), Some(new)) if old.diff_id == new.diff_id => {}
            (Some(old), Some(new)) => {
                let trees = (tree(first.0, old)?, tree(second.0, new)?);
                let differences =
                    layer(&trees.0, &trees.1, circumstances).map_err(BakeError::View)?;
                if differences.is_empty() {
                    found.push(whole(
                        "the layer's bytes, though not its files: another version of kiln made it",
                    ));
                }
                found.extend(differences.into_iter().map(|(path, cause)| Difference {
                    cause: of_context(&name, &path, cause),
                    step: Some(name.clone()),
                    path,
                }));
            }
            (Some(_), None) => found.push(whole("the second bake has no such layer")),
            (None, _) => found.push(whole("the first bake has no such layer")),
        }
    }
    let settings = |image: &Image| -> BTreeMap<String, String> {
        let config = serde_json::to_value(&image.config.config).unwrap_or_default();
        let fields = config.as_object().cloned().unwrap_or_default();
        let date = image
            .config
            .created
            .clone()
            .map(|date| ("created".to_owned(), date));
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name, value.to_string()));
        fields.chain(date).collect()
    };
    for change in crate::record::diff::changed(&settings(&old), &settings(&new)) {
        let text = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
        found.push(Difference {
            step: None,
            path: change.name,
            cause: format!("{} became {}", text(change.from), text(change.to)),
        });
    }
    Ok(found)
}

/// What a COPY takes of its context is the commit's, but for what Git does not keep. `step` may have its stage's name before it.
fn of_context(step: &str, path: &str, cause: String) -> String {
    let is_copy = ["COPY ", "ADD "]
        .iter()
        .any(|name| step.starts_with(name) || step.contains(&format!(": {name}")));
    if !is_copy {
        return cause;
    }
    if path.split('/').any(|part| part == ".git") {
        return format!(
            "{cause}: it is Git's own, which no commit has; name .git in .dockerignore"
        );
    }
    if cause.contains("its mode is") {
        return format!(
            "{cause}: of a mode Git keeps only whether its owner may execute it; say it with --chmod"
        );
    }
    cause
}

fn tree(store: &Store, layer: &Layer) -> Result<Tree, BakeError> {
    Ok(store.layer_tree(layer)?)
}

fn layer(
    old: &Tree,
    new: &Tree,
    circumstances: &Circumstances,
) -> io::Result<Vec<(String, String)>> {
    let paths: BTreeSet<&Path> = old.iter().chain(new.iter()).map(|(path, _)| path).collect();
    let is_only = |path: &Path| old.get(path).is_some() != new.get(path).is_some();
    let mut found = Vec::new();
    for path in &paths {
        let shown = Path::new("/").join(path).to_string_lossy().into_owned();
        let cause = match (old.get(path), new.get(path)) {
            (Some(before), Some(after)) => entry(path, before, after, circumstances)?,
            // What is in a folder that is only in one of them says nothing more.
            (Some(_), None) | (None, Some(_)) => match path.parent() {
                Some(parent) if parent != Path::new("") && is_only(parent) => None,
                parent => {
                    let in_first = old.get(path).is_some();
                    let beside = paths.iter().any(|other| {
                        other.parent() == parent
                            && is_only(other)
                            && old.get(other).is_some() != in_first
                    });
                    Some(match (beside, in_first) {
                        (true, _) => "its name is another in each bake".to_owned(),
                        (false, true) => "only the first bake made it".to_owned(),
                        (false, false) => "only the second bake made it".to_owned(),
                    })
                }
            },
            (None, None) => None,
        };
        found.extend(cause.map(|cause| (shown, cause)));
    }
    Ok(found)
}

fn entry(
    path: &Path,
    before: &Entry,
    after: &Entry,
    circumstances: &Circumstances,
) -> io::Result<Option<String>> {
    let mut causes = Vec::new();
    match (&before.kind, &after.kind) {
        (Kind::File { .. }, Kind::File { .. }) => {
            let (old, new) = (content(before)?, content(after)?);
            if old != new {
                causes.push(cause::of(path, &old, &new, circumstances));
            }
        }
        (Kind::Symlink { target }, Kind::Symlink { target: other }) if target != other => {
            causes.push(format!("it leads to {target:?}, and then to {other:?}"));
        }
        (Kind::Hardlink { target }, Kind::Hardlink { target: other }) if target != other => {
            causes.push("it is another name of another file".to_owned());
        }
        (before, after) if std::mem::discriminant(before) != std::mem::discriminant(after) => {
            causes.push("it is of another kind".to_owned());
        }
        _ => {}
    }
    if before.mode != after.mode {
        causes.push(format!(
            "its mode is {:04o}, and then {:04o}",
            before.mode, after.mode
        ));
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        causes.push("its owner".to_owned());
    }
    if before.xattrs != after.xattrs {
        causes.push("its attributes".to_owned());
    }
    if causes.is_empty() && before.mtime != after.mtime {
        // Times after the lock's date are set to it, so that these were set on purpose.
        causes.push(format!(
            "its time, which the step sets: {} and then {} seconds since 1970",
            before.mtime, after.mtime
        ));
    }
    Ok((!causes.is_empty()).then(|| causes.join("; ")))
}

fn content(entry: &Entry) -> io::Result<Vec<u8>> {
    let Kind::File { content, size } = &entry.kind else {
        return Ok(Vec::new());
    };
    read(content, *size, READ_MAX)
}

fn read(content: &kiln_oci::Content, size: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size.min(limit)).unwrap_or(0)];
    let reader = content.open()?;
    let mut at = 0;
    while at < bytes.len() {
        match reader.read_within(size, &mut bytes[at..], at as u64)? {
            0 => break,
            count => at += count,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// The image's programs that are linked statically, which a moved clock does not reach; and the linkers of another C library than
/// GNU's, for all that they load.
pub fn static_programs(store: &Store, digest: &Digest) -> Result<Vec<String>, BakeError> {
    let image = store.image(digest)?;
    let tree = Tree::merge(&store.layer_trees(&image)?)?;
    let mut found = Vec::new();
    for (path, entry) in tree.iter() {
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("ld-musl-") {
            found.push(Path::new("/").join(path).to_string_lossy().into_owned());
            continue;
        }
        // Libraries are marked as executable too, and need no interpreter either.
        let is_library = name.contains(".so");
        if entry.mode & 0o111 == 0 || is_library {
            continue;
        }
        let head = read(content, *size, HEAD as u64).map_err(BakeError::View)?;
        if is_static(&head) {
            found.push(Path::new("/").join(path).to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// An ELF program that names no interpreter. `head`: its beginning.
fn is_static(head: &[u8]) -> bool {
    const PROGRAM: u16 = 2;
    const SHARED: u16 = 3;
    const INTERPRETER: u32 = 3;
    const DYNAMIC: u32 = 2;
    let half = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let parse = || -> Option<bool> {
        // 64 bits, the low byte first: what kiln runs on.
        if head.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let kind = half(16)?;
        let at = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
        let kinds: Vec<u32> = (0..count)
            .map(|index| word(at.checked_add(index * size)?))
            .collect::<Option<_>>()?;
        let has = |kind: u32| kinds.contains(&kind);
        Some(match kind {
            PROGRAM => !has(INTERPRETER),
            // A library has none either; a program that can be loaded anywhere is one only where it says so.
            SHARED => {
                !has(INTERPRETER)
                    && has(DYNAMIC)
                    && u64::from_le_bytes(head.get(24..32)?.try_into().ok()?) != 0
            }
            _ => false,
        })
    };
    parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_compared_by_what_is_in_them() {
        let build = |files: &[(&str, &str, u32, i64)]| {
            let mut tree = Tree::new();
            for (path, text, mode, time) in files {
                let entry = Entry::bytes(text.as_bytes(), *mode).mtime(*time);
                tree.insert(path, entry).unwrap();
            }
            tree
        };
        let old = build(&[
            ("same", "x", 0o644, 5),
            ("time", "x", 0o644, 5),
            ("mode", "x", 0o644, 5),
            ("tmp.a1", "", 0o644, 5),
            ("folder/one", "", 0o644, 5),
        ]);
        let new = build(&[
            ("same", "x", 0o644, 5),
            ("time", "x", 0o644, 6),
            ("mode", "x", 0o755, 5),
            ("tmp.b2", "", 0o644, 5),
        ]);
        let found = layer(&old, &new, &Circumstances::default()).unwrap();
        let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/folder", "/mode", "/time", "/tmp.a1", "/tmp.b2"]);
        assert!(found[1].1.contains("0644, and then 0755"), "{found:?}");
        assert!(found[2].1.starts_with("its time"), "{found:?}");
        assert!(found[4].1.contains("name"), "{found:?}");
        assert!(
            layer(&old, &old, &Circumstances::default())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_program_without_an_interpreter_is_static() {
        let elf = |kind: u16, entry: u64, segments: &[u32]| {
            let mut head = vec![0_u8; 64];
            head[..6].copy_from_slice(b"\x7fELF\x02\x01");
            head[16..18].copy_from_slice(&kind.to_le_bytes());
            head[24..32].copy_from_slice(&entry.to_le_bytes());
            head[32..40].copy_from_slice(&64_u64.to_le_bytes());
            head[54..56].copy_from_slice(&56_u16.to_le_bytes());
            head[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
            for kind in segments {
                head.extend(kind.to_le_bytes());
                head.extend([0; 52]);
            }
            head
        };
        assert!(is_static(&elf(2, 1, &[1])));
        assert!(is_static(&elf(3, 1, &[1, 2])));
        assert!(!is_static(&elf(2, 1, &[1, 3])));
        assert!(!is_static(&elf(3, 1, &[1, 2, 3])));
        assert!(!is_static(&elf(3, 0, &[1, 2])), "a library");
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
