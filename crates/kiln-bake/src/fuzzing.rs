//! What is read of Debian's archives, each by itself, for the fuzz targets.

use std::path::Path;

use crate::deb::Deb;
use crate::onto::Onto;
use crate::{control, signature, version};

/// The control files of a package.
pub fn control_files(package: &[u8]) {
    let _ = Deb::new(package.to_vec()).control();
}

/// A package's files, below `root`.
pub fn unpack(package: &[u8], root: &Path) {
    let onto = Onto::new(root, None);
    let _ = Deb::new(package.to_vec()).unpack(&onto, &|path| Some(path.to_owned()));
}

/// An index: its paragraphs are written as they are read, and of two versions one is newer or both are one.
///
/// # Panics
///
/// Where that does not hold.
pub fn control(text: &str) {
    for paragraph in control::paragraphs(text) {
        let written = paragraph.write();
        let again = control::paragraphs(&written);
        assert!(again.len() <= 1, "one paragraph became {}", again.len());
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
}

/// A signed index of an archive, whose signature nobody but Debian's keys made.
///
/// # Panics
///
/// Where a text counts as Debian's.
pub fn release(text: &str) {
    if let Ok(keys) = signature::Keys::debian() {
        assert!(signature::verified(text, 1_700_000_000, &keys).is_err());
    }
}
