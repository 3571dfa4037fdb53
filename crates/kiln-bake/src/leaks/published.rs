//! What is no secret, since a package brought it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_oci::{Kind, Tree};
use md5::{Digest as _, Md5};

use super::content::in_file;
use super::finding::Finding;
use crate::error::BakeError;

/// A package of a hundred thousand files has a list of some ten megabytes.
const SUMS_MAX: u64 = 64 << 20;

/// The sums of configuration files are here alone.
const STATUS: &str = "var/lib/dpkg/status";

/// The MD5 sums of the files that the layer's packages brought, by path. What everybody can fetch from Debian is no secret: the keys
/// that libraries test themselves with are in many a package.
pub(super) fn published(tree: &Tree) -> Result<BTreeMap<PathBuf, String>, BakeError> {
    let mut sums = BTreeMap::new();
    for (path, entry) in tree.iter() {
        let is_status = path == Path::new(STATUS);
        let is_list = path.starts_with("var/lib/dpkg/info")
            && path
                .extension()
                .is_some_and(|extension| extension == "md5sums");
        let Kind::File { content, size } = &entry.kind else {
            continue;
        };
        if !is_list && !is_status || *size > SUMS_MAX {
            continue;
        }
        let mut text = vec![0; usize::try_from(*size).unwrap_or(0)];
        let count = content
            .open()
            .and_then(|file| file.read_within(*size, &mut text, 0))
            .map_err(BakeError::io(path))?;
        for line in String::from_utf8_lossy(&text[..count]).lines() {
            let pair = if is_status {
                // ` /PATH SUM`, with ` obsolete` behind it where no package has the file any more.
                let line = line
                    .strip_prefix(" /")
                    .and_then(|line| line.rsplit_once(' '));
                line.map(|(path, sum)| (sum, path))
            } else {
                line.split_once("  ")
            };
            if let Some((sum, path)) = pair {
                sums.insert(PathBuf::from(path), sum.to_owned());
            }
        }
    }
    Ok(sums)
}

/// Whether the file is, byte for byte, one that a package brought, or compiled from such a one.
pub(super) fn is_published(
    tree: &Tree,
    published: &BTreeMap<PathBuf, String>,
    finding: &Finding,
    buffer: &mut [u8],
) -> Result<bool, BakeError> {
    let path = Path::new(finding.place.trim_start_matches('/'));
    let source = compiled_from(path);
    let path = source.as_deref().unwrap_or(path);
    // Packages from before /usr was merged name what is in /usr/lib as /lib.
    let before = path.strip_prefix("usr").unwrap_or(path);
    let Some(sum) = published.get(path).or_else(|| published.get(before)) else {
        return Ok(false);
    };
    let Some(Kind::File { content, size }) = tree.get(path).map(|entry| &entry.kind) else {
        return Ok(false);
    };
    // What is compiled has nothing that its source has not.
    if source.is_some() {
        let (rules, _) = in_file(content, *size, buffer).map_err(BakeError::io(path))?;
        if !rules.contains(finding.rule.as_str()) {
            return Ok(false);
        }
    }
    let file = content.open().map_err(BakeError::io(path))?;
    let (mut hasher, mut at) = (Md5::new(), 0);
    loop {
        let count = file
            .read_within(*size, buffer, at)
            .map_err(BakeError::io(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(hex == *sum)
}

/// What a script of a package compiles has what its source has: `a/__pycache__/b.cpython-311.pyc` is made of `a/b.py`.
fn compiled_from(path: &Path) -> Option<PathBuf> {
    let folder = path
        .parent()
        .filter(|folder| folder.ends_with("__pycache__"))?;
    let name = path.file_name()?.to_str()?.strip_suffix(".pyc")?;
    let (module, _) = name.split_once(".cpython-")?;
    Some(folder.parent()?.join(format!("{module}.py")))
}
