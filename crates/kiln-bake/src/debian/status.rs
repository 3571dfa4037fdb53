//! The packages that an image has, as the status file of its dpkg says.

use std::io;
use std::path::Path;

use crate::debian::control::{Paragraph, paragraphs};
use crate::in_root;

/// The database of a machine with ten thousand packages has some tens of megabytes.
pub(crate) const STATUS_MAX: u64 = 256 << 20;
/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    /// Name and version.
    pub(crate) source: (String, String),
    pub(crate) maintainer: Option<String>,
}

/// The packages that the image at `root` has, ordered; none where it has no dpkg database.
pub(crate) fn installed(root: &Path) -> io::Result<Vec<Package>> {
    let status = in_root::text(root, Path::new("var/lib/dpkg/status"), STATUS_MAX)?;
    Ok(packages(&status.unwrap_or_default()))
}

/// The installed packages of dpkg's status file.
pub(crate) fn packages(status: &str) -> Vec<Package> {
    let mut all: Vec<Package> = paragraphs(status).iter().filter_map(package).collect();
    all.sort();
    all
}

fn package(paragraph: &Paragraph) -> Option<Package> {
    // `want flag state`: what is removed but for its configuration is not in the image.
    if paragraph.get("Status")?.split_whitespace().last() != Some("installed") {
        return None;
    }
    let name = paragraph.get("Package")?.to_owned();
    let version = paragraph.get("Version")?.to_owned();
    // `name (version)` where it is not the package's own.
    let source = paragraph.get("Source").unwrap_or(&name);
    let source = match source.split_once(" (") {
        Some((source, other)) => (source.to_owned(), other.trim_end_matches(')').to_owned()),
        None => (source.to_owned(), version.clone()),
    };
    Some(Package {
        arch: paragraph.get("Architecture")?.to_owned(),
        maintainer: paragraph.get("Maintainer").map(str::to_owned),
        name,
        version,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: libfoo\nStatus: install ok installed\nVersion: 1:2.0+b1\n\
        Architecture: amd64\nSource: foo (1:2.0)\nMaintainer: Foo People <foo@example.org>\n\n\
        Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n\
        Package: bar\nStatus: install ok installed\nVersion: 3\nArchitecture: all\n";

    #[test]
    fn packages_have_their_sources_and_what_is_gone_is_left_out() {
        let all = packages(STATUS);
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["bar", "libfoo"]);
        assert_eq!(all[0].source, ("bar".to_owned(), "3".to_owned()));
        assert_eq!(all[1].source, ("foo".to_owned(), "1:2.0".to_owned()));
    }
}
