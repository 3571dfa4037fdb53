//! Where the apt of an image looks for packages, so that a Dockerfile on a Debian of kiln's can say `apt-get install`: the archive that the
//! definition names, else Debian's public one. This machine's own mirror is never in an image, which is the same wherever it is baked.

use std::io;
use std::path::Path;

use kiln_model::{DebianOrigin, DebianSpec, Digest, ImageSpec};
use kiln_oci::{Entry, Tree};
use rustix::fs::OFlags;

use crate::debian::lock::ImageLock;
use crate::debian::lock_update;
use crate::debian::sources::{self, PUBLIC};
use crate::error::BakeError;
use crate::front::definition::copy;
use crate::front::definition::graph::{AptSources, CopiedFile, CopiedKind};
use crate::in_root;

const FILE: &str = "etc/apt/sources.list.d/debian.sources";
/// All that may be made of the sources.
pub(crate) const FILES: [&str; 4] = [
    FILE,
    CLEAN,
    "etc/apt/keyrings/archive.asc",
    "etc/apt/keyrings/archive.gpg",
];
/// What official images call it, so that Dockerfiles with a cache for apt find it to take away.
const CLEAN: &str = "etc/apt/apt.conf.d/docker-clean";
/// Else what a RUN installs would be in its layer twice: as files, and packed.
const CLEAN_TEXT: &str = "# No layer keeps what apt fetched.\n\
    APT::Keep-Downloaded-Packages \"false\";\n\
    Dir::Cache::pkgcache \"\";\n\
    Dir::Cache::srcpkgcache \"\";\n";
const ONE_LINE: &str = "etc/apt/sources.list";
const FOLDER: &str = "etc/apt/sources.list.d";

/// Where the package `debian-archive-keyring` has Debian's keys: in all releases so far, and in those to come.
const KEYRINGS: [&str; 2] = [
    "usr/share/keyrings/debian-archive-keyring.gpg",
    "usr/share/keyrings/debian-archive-keyring.pgp",
];

/// A `sources.list` is some lines.
const LIST_MAX: u64 = 1 << 20;

/// What the image needs; `None` where it has no apt, where `copies`, what its `copy` blocks take, has sources, and where the archive has no name.
pub(crate) fn wanted(
    image: &ImageSpec,
    debian: &DebianSpec,
    locked: &ImageLock,
    copies: &[Vec<CopiedFile>],
    context: &Path,
) -> Result<Option<AptSources>, BakeError> {
    let has_apt = locked.packages.iter().any(|package| package.name == "apt");
    let mut copied = image.copies.iter().zip(copies);
    let has_own = copied.any(|(copy, files)| {
        let target = copy::target(copy, files);
        files.iter().any(|file| {
            let place = target.join(&file.path);
            file.kind != CopiedKind::Folder
                && (place == Path::new(ONE_LINE) || place.starts_with(FOLDER))
        })
    });
    if !has_apt || has_own {
        return Ok(None);
    }
    let Some(mut apt) = of(debian, &locked.absent) else {
        return Ok(None);
    };
    if let Some(keyring) = &debian.keyring {
        let bytes = lock_update::keyring(image, context, keyring)?;
        apt.keyring = Some(Digest::of(&bytes));
    }
    Ok(Some(apt))
}

/// `absent`: suites that the archive does not have.
fn of(debian: &DebianSpec, absent: &[String]) -> Option<AptSources> {
    let mut named = debian.clone();
    if debian.origin == DebianOrigin::Machine {
        if debian.keyring.is_some() {
            // It is not Debian's archive, and which it is only the machine knows.
            return None;
        }
        named.origin = DebianOrigin::Mirror {
            url: PUBLIC.to_owned(),
            security: None,
        };
    }
    let mut sources: Vec<(String, String)> = Vec::new();
    let mut frozen = false;
    for source in sources::find(&named) {
        if source.optional && absent.contains(&source.suite) {
            continue;
        }
        frozen |= source.frozen;
        let uri = plain(source.uri);
        match sources.iter_mut().find(|(known, _)| *known == uri) {
            Some((_, suites)) => *suites = format!("{suites} {}", source.suite),
            None => sources.push((uri, source.suite)),
        }
    }
    Some(AptSources {
        sources,
        components: debian.components.clone(),
        frozen,
        keyring: None,
    })
}

/// The archive of snapshots answers without TLS too, for which an image would need the package `ca-certificates`; what comes is signed.
fn plain(uri: String) -> String {
    match uri.strip_prefix("https://snapshot.debian.org/") {
        Some(rest) => format!("http://snapshot.debian.org/{rest}"),
        None => uri,
    }
}

/// The layer with the file. `view`: the image so far; sources that its packages brought stay as they are.
pub(crate) fn layer(
    apt: &AptSources,
    image: &ImageSpec,
    (context, view): (&Path, &Path),
    date: i64,
) -> Result<Tree, BakeError> {
    let mut tree = Tree::new();
    let list = in_root::text(view, Path::new(ONE_LINE), LIST_MAX).map_err(BakeError::View)?;
    if is_there(view, FILE)? || list.is_some_and(|list| !list.trim().is_empty()) {
        return Ok(tree);
    }
    let own = match image
        .debian
        .as_ref()
        .and_then(|debian| debian.keyring.as_ref())
    {
        Some(keyring) => Some(lock_update::keyring(image, context, keyring)?),
        None => None,
    };
    let mut signed_by = None;
    if let Some(bytes) = own {
        // apt tells the two forms apart by the name.
        let is_text = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
        let path = format!(
            "etc/apt/keyrings/archive.{}",
            if is_text { "asc" } else { "gpg" }
        );
        copy::folder(&mut tree, view, Path::new("etc/apt/keyrings"))?;
        tree.insert(&path, Entry::bytes(bytes, 0o644).mtime(date))?;
        signed_by = Some(path);
    } else {
        for path in KEYRINGS {
            if signed_by.is_none() && is_there(view, path)? {
                signed_by = Some(path.to_owned());
            }
        }
    }
    copy::folder(&mut tree, view, Path::new(FOLDER))?;
    copy::folder(&mut tree, view, Path::new("etc/apt/apt.conf.d"))?;
    let clean = CLEAN_TEXT.as_bytes().to_vec();
    tree.insert(CLEAN, Entry::bytes(clean, 0o644).mtime(date))?;
    let text = text(apt, signed_by.as_deref());
    tree.insert(FILE, Entry::bytes(text.into_bytes(), 0o644).mtime(date))?;
    Ok(tree)
}

fn is_there(view: &Path, path: &str) -> Result<bool, BakeError> {
    match in_root::open(view, Path::new(path), OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(error) if in_root::is_absent(&error) => Ok(false),
        Err(error) => Err(BakeError::View(io::Error::other(error))),
    }
}

/// In the form of sources.list(5) that Debian's own images have.
fn text(apt: &AptSources, signed_by: Option<&str>) -> String {
    let AptSources {
        sources,
        components,
        frozen,
        keyring: _,
    } = apt;
    let one = |(uri, suites): &(String, String)| {
        let mut text = format!(
            "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {}\n",
            components.join(" ")
        );
        if *frozen {
            text.push_str("Check-Valid-Until: no\n");
        }
        if let Some(path) = signed_by {
            text.push_str(&format!("Signed-By: /{path}\n"));
        }
        text
    };
    let all: Vec<String> = sources.iter().map(one).collect();
    all.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(suite: &str, origin: DebianOrigin) -> DebianSpec {
        DebianSpec {
            components: vec!["main".into(), "contrib".into()],
            origin,
            ..DebianSpec::of(suite)
        }
    }

    fn lines(apt: &AptSources) -> Vec<String> {
        let one = |(uri, suites): &(String, String)| format!("{uri} {suites}");
        apt.sources.iter().map(one).collect()
    }

    #[test]
    fn the_sources_are_those_of_the_definition_and_else_the_public_ones() {
        let mut machine = debian("bookworm", DebianOrigin::Machine);
        let apt = of(&machine, &[]).unwrap();
        let written = text(&apt, Some("usr/share/keyrings/k.gpg"));
        assert_eq!(
            written,
            "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
             Types: deb\nURIs: http://deb.debian.org/debian-security\nSuites: bookworm-security\nComponents: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n"
        );
        machine.updates = false;
        machine.security = false;
        assert_eq!(
            lines(&of(&machine, &[]).unwrap()),
            ["http://deb.debian.org/debian bookworm"]
        );
        machine.keyring = Some("own.gpg".into());
        assert_eq!(of(&machine, &[]), None, "only the machine knows its mirror");
        let origin = DebianOrigin::Mirror {
            url: "https://m.test/debian/".to_owned(),
            security: None,
        };
        let mirror = debian("trixie", origin);
        assert_eq!(
            lines(&of(&mirror, &["trixie-security".into()]).unwrap()),
            ["https://m.test/debian trixie trixie-updates"]
        );
        let sid = debian("sid", DebianOrigin::Machine);
        assert_eq!(
            lines(&of(&sid, &[]).unwrap()),
            ["http://deb.debian.org/debian sid"]
        );
    }

    #[test]
    fn a_snapshot_is_never_out_of_date() {
        let apt = of(
            &debian(
                "bookworm",
                DebianOrigin::Snapshot {
                    url: "https://snapshot.debian.org/archive/debian/1".into(),
                    security: "https://snapshot.debian.org/archive/debian-security/1".into(),
                },
            ),
            &[],
        );
        let written = text(&apt.unwrap(), None);
        for part in [
            "URIs: http://snapshot.debian.org/archive/debian/1\n",
            "URIs: http://snapshot.debian.org/archive/debian-security/1\n",
        ] {
            assert!(written.contains(part), "{part} in {written}");
        }
        assert_eq!(written.matches("Check-Valid-Until: no\n").count(), 2);
        assert!(!written.contains("Signed-By"));
    }
}
