//! What a package's changelog says was mended (deb-changelog(5)).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_oci::{Kind, Tree};

use crate::debian::deb::Deb;
use crate::debian::version;

/// The longest changelogs have some megabytes.
const LIMIT: u64 = 64 << 20;
/// In a circle of links nothing is found.
const LINKS: usize = 8;

/// The CVE names of the entries that are newer than the version `from`, where the package has its changelog.
pub(crate) fn mended(deb: &Deb, package: &str, from: &str) -> BTreeSet<String> {
    mended_in(package, from, |path| deb.file(path, LIMIT).ok().flatten())
}

/// As `mended`, of a package that is installed in an image. `from` is a version of its source.
pub(crate) fn mended_in_image(tree: &Tree, package: &str, from: &str) -> BTreeSet<String> {
    mended_in(package, from, |path| read(tree, path))
}

fn mended_in(
    package: &str,
    from: &str,
    file: impl Fn(&Path) -> Option<Vec<u8>>,
) -> BTreeSet<String> {
    let folder = Path::new("usr/share/doc").join(package);
    let mut text = Vec::new();
    // A native package, which Debian alone has, calls it `changelog`.
    for name in ["changelog.Debian.gz", "changelog.gz"] {
        if let Some(packed) = file(&folder.join(name))
            && flate2::read::MultiGzDecoder::new(&packed[..])
                .take(LIMIT)
                .read_to_end(&mut text)
                .is_ok()
        {
            break;
        }
        text.clear();
    }
    newer(&String::from_utf8_lossy(&text), from)
}

/// A file of an image. Packages of one source share a folder or a changelog by links.
fn read(tree: &Tree, path: &Path) -> Option<Vec<u8>> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match &tree.get(&path).map(|entry| &entry.kind) {
            Some(Kind::File { content, size }) if *size <= LIMIT => {
                let mut bytes = vec![0; usize::try_from(*size).ok()?];
                let file = content.open().ok()?;
                let mut at = 0;
                while at < bytes.len() {
                    match file.read_within(*size, &mut bytes[at..], at as u64).ok()? {
                        0 => return None,
                        count => at += count,
                    }
                }
                return Some(bytes);
            }
            Some(Kind::Hardlink { target }) => path.clone_from(target),
            Some(Kind::Symlink { target }) => {
                let folder = path.parent()?.to_owned();
                path = inside(&folder, Path::new(OsStr::from_bytes(target)));
            }
            Some(_) => return None,
            // Its folder may be a link.
            None => {
                let (folder, name) = (path.parent()?, path.file_name()?);
                let Kind::Symlink { target } = &tree.get(folder)?.kind else {
                    return None;
                };
                path = inside(folder.parent()?, Path::new(OsStr::from_bytes(target))).join(name);
            }
        }
    }
    None
}

/// Where `target`, of a link in `folder`, leads to.
fn inside(folder: &Path, target: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for part in target.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => path.clear(),
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
        }
    }
    path
}

fn newer(text: &str, from: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        // `name (version) suite; urgency=…` begins an entry.
        let version = line
            .starts_with(|c: char| c.is_ascii_alphanumeric())
            .then(|| line.split_once(" (")?.1.split_once(')'))
            .flatten()
            .map(|(version, _)| version);
        if version.is_some_and(|version| version::compare(version, from).is_le()) {
            break;
        }
        for (place, _) in line.match_indices("CVE-") {
            let name: String = line[place..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            let is_whole = |name: &str| {
                let mut parts = name.split('-').skip(1);
                let number = |part: Option<&str>, least: usize| {
                    part.is_some_and(|part| {
                        part.len() >= least && part.bytes().all(|byte| byte.is_ascii_digit())
                    })
                };
                number(parts.next(), 4) && number(parts.next(), 4) && parts.next().is_none()
            };
            let name = name.trim_end_matches('-');
            if is_whole(name) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::newer;

    #[test]
    fn what_newer_entries_mend_is_found() {
        let text = "lib (1.2-3+deb12u2) bookworm-security; urgency=high\n\n  * CVE-2026-0001, CVE-2026-12345: overflow.\n  * See CVE-2026-1 and CVE-X.\n\n -- A <a@b>  Mon, 1 Jan 2026\n\nlib (1.2-3+deb12u1) bookworm; urgency=medium\n\n  * Fix (CVE-2025-9999).\n";
        let found = |from: &str| newer(text, from).into_iter().collect::<Vec<_>>();
        assert_eq!(found("1.2-3+deb12u1"), ["CVE-2026-0001", "CVE-2026-12345"]);
        assert_eq!(found("1.2-3").len(), 3);
        assert!(found("1.2-3+deb12u2").is_empty());
    }
}
