//! What is read of Debian's archives, each by itself, for the fuzz targets.

use std::path::Path;

use crate::debian::control;
use crate::debian::deb::Deb;
use crate::debian::signature;
use crate::debian::upper_dir::UpperDir;
use crate::debian::version;

/// The control files of a package. Answers, as all here do, whether it was taken.
pub fn control_files(package: &[u8]) -> bool {
    Deb::new(package.to_vec()).control().is_ok()
}

/// A package's files, below `root`.
pub fn unpack(package: &[u8], root: &Path) -> bool {
    let upper_dir = UpperDir::new(root, None);
    let unpacked = Deb::new(package.to_vec()).unpack(&upper_dir, &|path| Some(path.to_owned()));
    unpacked.is_ok()
}

/// An index: its paragraphs are written as they are read, and of two versions one is newer or both are one.
///
/// # Panics
///
/// Where that does not hold.
pub fn control(text: &str) -> bool {
    let paragraphs = control::paragraphs(text);
    for paragraph in &paragraphs {
        let written = paragraph.write();
        let again = control::paragraphs(&written);
        let one = std::slice::from_ref(paragraph);
        assert_eq!(again, one, "written as {written:?}");
        for field in ["Depends", "Provides", "Conflicts"] {
            let Some(value) = paragraph.get(field) else {
                continue;
            };
            for relation in control::relations(value, "amd64").into_iter().flatten() {
                relation.admits("1.0-1");
                let _ = relation.to_string();
            }
        }
        if let (Some(one), Some(other)) = (paragraph.get("Version"), paragraph.get("Source")) {
            assert_eq!(
                version::compare(one, other),
                version::compare(other, one).reverse()
            );
        }
    }
    !paragraphs.is_empty()
}

/// A signed index of an archive, whose signature nobody but Debian's keys made.
///
/// # Panics
///
/// Where a text counts as Debian's.
pub fn release(text: &str) -> bool {
    if let Ok(keys) = signature::Keys::debian() {
        assert!(signature::verified(text, 1_700_000_000, &keys).is_err());
    }
    false
}
