//! What a slim image goes without: documents, manuals, translations. Licences stay. dpkg's database stays too, and is told of it, so that
//! packages that are installed later are as slim.

use std::path::Path;

/// Folders whose content is left out.
const FOLDERS: [&str; 7] = [
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/linda",
    "usr/share/gtk-doc",
    "usr/share/gnome/help",
];

const DOCUMENTS: &str = "usr/share/doc";

/// What is kept of each folder below `usr/share/doc`.
const LICENCE: &str = "copyright";

/// What programs look for even without translations.
const ALIASES: &str = "usr/share/locale/locale.alias";

pub(crate) const CONFIG: &str = "etc/dpkg/dpkg.cfg.d/slim";

/// Whether a path of a package is not unpacked.
pub(crate) fn leaves_out(path: &Path) -> bool {
    if let Ok(inside) = path.strip_prefix(DOCUMENTS) {
        let parts = inside.components().count();
        return parts > 2 || parts == 2 && !inside.ends_with(LICENCE);
    }
    let mut folders = FOLDERS.iter();
    path != Path::new(ALIASES)
        && folders.any(|folder| path.starts_with(folder) && path != Path::new(folder))
}

/// The same for the image's own dpkg (dpkg(1), `path-exclude`).
pub(crate) fn config() -> String {
    let mut lines = format!("path-exclude=/{DOCUMENTS}/*\npath-include=/{DOCUMENTS}/*/{LICENCE}\n");
    for folder in FOLDERS {
        lines.push_str(&format!("path-exclude=/{folder}/*\n"));
    }
    lines + &format!("path-include=/{ALIASES}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_left_out_and_licences_stay() {
        for (path, out) in [
            ("usr/share/doc/tar", false),
            ("usr/share/doc/tar/copyright", false),
            ("usr/share/doc/tar/changelog.gz", true),
            ("usr/share/doc/tar/examples/copyright", true),
            ("usr/share/man", false),
            ("usr/share/man/man1/ls.1.gz", true),
            ("usr/share/manual", false),
            ("usr/share/locale/de/LC_MESSAGES/tar.mo", true),
            ("usr/share/locale/locale.alias", false),
            ("usr/bin/man", false),
        ] {
            assert_eq!(leaves_out(Path::new(path)), out, "{path}");
        }
        assert!(config().contains("path-exclude=/usr/share/man/*\n"));
    }
}
