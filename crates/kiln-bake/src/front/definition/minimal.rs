//! An image of some packages and what they need at run time, and nothing else: no essential packages, no shell where none was asked
//! for, no package manager. Its packages are configured in an ordinary image of the same lock, and taken from there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use kiln_oci::{Entry, Kind, Tree};

use crate::debian::control::{self, Paragraph, relations};
use crate::debian::database::info_name;
use crate::debian::deb::merged;
use crate::debian::status::STATUS_MAX;
use crate::error::BakeError;
use crate::front::definition::apt_sources;
use crate::in_root;

/// What packages depend on for the sake of their scripts alone, which have run.
const HELPERS: [&str; 13] = [
    "adduser",
    "cdebconf",
    "debconf",
    "debconf-2.0",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "lsb-base",
    "sysvinit-utils",
    "ucf",
    "update-inetd",
    "usr-is-merged",
    "usrmerge",
];

/// Of no package, but programs look there: made by the scripts of essential packages.
const COMMON: [&str; 6] = [
    "etc/group",
    "etc/ld.so.cache",
    "etc/nsswitch.conf",
    "etc/os-release",
    "etc/passwd",
    "usr/lib/os-release",
];
const FOLDERS: [&str; 4] = ["home", "root", "tmp", "var/tmp"];

/// What scripts leave behind for the next ones.
const STATE: [&str; 9] = [
    "etc/.pwd.lock",
    "run",
    "tmp",
    "var/backups",
    "var/cache",
    "var/lib/dpkg",
    "var/lib/systemd",
    "var/lib/ucf",
    "var/log",
];

/// As many links as the kernel follows (MAXSYMLINKS).
const LINKS: usize = 40;
const STATUS: &str = "var/lib/dpkg/status";
const INFO: &str = "var/lib/dpkg/info";

/// What of an image to keep.
pub(crate) struct Wanted<'a> {
    pub(crate) packages: &'a [String],
    pub(crate) arch: &'a str,
    pub(crate) date: i64,
}

/// `whole`: the image in which everything is configured, at `view`. `new`: what its packages, other than the base, changed.
pub(crate) fn tree(
    wanted: &Wanted<'_>,
    view: &Path,
    whole: &Tree,
    new: &Tree,
) -> Result<Tree, BakeError> {
    let text = |path: &str| {
        let text = in_root::text(view, Path::new(path), STATUS_MAX);
        Ok::<_, BakeError>(text.map_err(BakeError::View)?.unwrap_or_default())
    };
    let installed = control::paragraphs(&text(STATUS)?);
    let kept = closure(wanted.packages, &installed, wanted.arch);
    let mut owned: BTreeSet<PathBuf> = BTreeSet::new();
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    let mut database: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut status = String::new();
    for (index, paragraph) in installed.iter().enumerate() {
        let info = format!("{INFO}/{}", info_name(paragraph));
        let list = text(&format!("{info}.list"))?;
        let own = list
            .lines()
            .map(|line| merged(Path::new(line.trim_start_matches('/'))));
        let own = own.filter(|path| path != Path::new("."));
        if !kept.contains(&index) {
            owned.extend(own);
            continue;
        }
        paths.extend(own);
        status.push_str(&paragraph.write());
        status.push('\n');
        let sums = text(&format!("{info}.md5sums"))?;
        for (ending, text) in [("list", list), ("md5sums", sums)] {
            database.insert(PathBuf::from(format!("{info}.{ending}")), text.into_bytes());
        }
    }
    database.insert(PathBuf::from(STATUS), status.into_bytes());
    let has_apt = |index: &usize| installed[*index].get("Package") == Some("apt");
    if !kept.iter().any(has_apt) {
        owned.extend(apt_sources::FILES.map(PathBuf::from));
    }
    let is_file = |entry: &Entry| {
        !matches!(
            entry.kind,
            Kind::Dir { .. } | Kind::Symlink { .. } | Kind::Whiteout
        )
    };
    // Of what belongs to nobody: what the new packages' scripts made, and what there has to be.
    let made = new.iter().filter(|(path, entry)| {
        let is_state = STATE.iter().any(|state| path.starts_with(state));
        is_file(entry) && !is_state && !owned.contains(*path) && !path.as_os_str().is_empty()
    });
    paths.extend(made.map(|(path, _)| path.to_owned()));
    let mut common = COMMON.iter().chain(&FOLDERS).map(PathBuf::from);
    paths.extend(common.by_ref().filter(|path| whole.get(path).is_some()));
    let folders: BTreeSet<PathBuf> = paths
        .iter()
        .flat_map(|path| path.ancestors().skip(1).map(Path::to_owned))
        .collect();
    paths.extend(folders);
    // A link is there where what it leads to is: alternatives, `/lib`.
    for (path, entry) in whole.iter() {
        if let Kind::Symlink { .. } = entry.kind
            && !owned.contains(path)
            && !paths.contains(path)
            && let Some(way) = way(whole, path)
            && way.last().is_some_and(|end| paths.contains(end))
        {
            paths.extend(way);
        }
    }
    let mut tree = Tree::new();
    if let Some(root) = whole.get("") {
        tree.insert("", root.clone())?;
    }
    for (path, entry) in whole.iter() {
        if paths.contains(path) && !path.as_os_str().is_empty() {
            tree.insert(path, entry_of(whole, &paths, path, entry))?;
        }
    }
    for (path, bytes) in database {
        tree.insert(&path, Entry::bytes(bytes, 0o644).mtime(wanted.date))?;
    }
    Ok(tree)
}

/// A further name of a file whose first name is not kept is the file.
fn entry_of(whole: &Tree, kept: &BTreeSet<PathBuf>, path: &Path, entry: &Entry) -> Entry {
    let Kind::Hardlink { target } = &entry.kind else {
        return entry.clone();
    };
    if kept.contains(target) {
        return entry.clone();
    }
    let first = whole.iter().find(|(other, there)| {
        kept.contains(*other)
            && matches!(&there.kind, Kind::Hardlink { target: same } if same == target)
    });
    match first {
        Some((first, _)) if first != path => {
            let mut entry = entry.clone();
            entry.kind = Kind::Hardlink {
                target: first.to_owned(),
            };
            entry
        }
        _ => whole.get(target).unwrap_or(entry).clone(),
    }
}

/// The links from `path` on, and what they lead to at last; none where that is nothing.
fn way(tree: &Tree, path: &Path) -> Option<Vec<PathBuf>> {
    let mut way = vec![path.to_owned()];
    for _ in 0..LINKS {
        let here = way.last()?.clone();
        match &tree.get(&here)?.kind {
            Kind::Symlink { target } => {
                let target = String::from_utf8_lossy(target).into_owned();
                way.push(resolved(here.parent()?, Path::new(&target)));
            }
            _ => return Some(way),
        }
    }
    None
}

/// Where a link in `folder` leads, with the links of a merged `/usr` followed.
fn resolved(folder: &Path, target: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for part in target.components() {
        match part {
            Component::RootDir => path = PathBuf::new(),
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    merged(&path)
}

/// The packages of these names, and what they need at run time.
fn closure(names: &[String], installed: &[Paragraph], arch: &str) -> BTreeSet<usize> {
    let gives = |index: usize, relation: &control::Relation| {
        let package = &installed[index];
        if package.get("Package") == Some(&relation.name) {
            return relation.admits(package.get("Version").unwrap_or_default());
        }
        let provides = relations(package.get("Provides").unwrap_or_default(), arch);
        provides.iter().flatten().any(|provided| {
            let version = provided.version.as_ref().map(|(_, version)| version);
            provided.name == relation.name
                && (relation.version.is_none() || version.is_some_and(|v| relation.admits(v)))
        })
    };
    let find = |relation: &control::Relation| {
        let mut all = 0..installed.len();
        let by_name = |index: &usize| installed[*index].get("Package") == Some(&relation.name);
        all.clone()
            .find(|index| by_name(index) && gives(*index, relation))
            .or_else(|| all.find(|index| gives(*index, relation)))
    };
    let named = |name: &String| control::Relation {
        name: name.clone(),
        version: None,
    };
    let mut queue: Vec<usize> = names.iter().filter_map(|name| find(&named(name))).collect();
    let mut found: BTreeSet<usize> = queue.iter().copied().collect();
    while let Some(index) = queue.pop() {
        for field in ["Pre-Depends", "Depends"] {
            let groups = relations(installed[index].get(field).unwrap_or_default(), arch);
            for group in groups {
                let is_helper = |one: &control::Relation| HELPERS.contains(&one.name.as_str());
                let candidates: Vec<usize> = group.iter().filter_map(find).collect();
                let known = candidates.iter().any(|index| found.contains(index));
                if known || group.iter().any(is_helper) {
                    continue;
                }
                if let Some(needed) = candidates.first().copied()
                    && found.insert(needed)
                {
                    queue.push(needed);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "\
Package: app\nVersion: 2\nDepends: lib (>= 1), debconf (>= 0.5) | debconf-2.0, mta | other\n
Package: lib\nVersion: 1\nPre-Depends: libc\n
Package: libc\nVersion: 1\n
Package: debconf\nVersion: 1\nDepends: shell\n
Package: shell\nVersion: 1\n
Package: postfix\nVersion: 1\nProvides: mta\n
";

    #[test]
    fn what_is_needed_comes_and_what_only_configures_does_not() {
        let installed = control::paragraphs(STATUS);
        let names = |wanted: &str| {
            closure(&[wanted.to_owned()], &installed, "x")
                .into_iter()
                .map(|index| installed[index].get("Package").unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("app"), ["app", "lib", "libc", "postfix"]);
        assert_eq!(names("debconf"), ["debconf", "shell"]);
        assert_eq!(names("mta"), ["postfix"]);
    }

    #[test]
    fn files_of_the_packages_and_of_their_scripts_are_kept_with_the_links_to_them() {
        let view = tempfile::tempdir().unwrap();
        let info = view.path().join(INFO);
        std::fs::create_dir_all(&info).unwrap();
        std::fs::write(view.path().join(super::STATUS), STATUS).unwrap();
        for (name, list) in [
            ("app", "/.\n/usr\n/usr/bin\n/usr/bin/app\n/bin/second\n"),
            ("shell", "/.\n/usr/bin/sh\n/usr/bin/also\n"),
        ] {
            std::fs::write(info.join(format!("{name}.list")), list).unwrap();
        }
        let mut whole = Tree::new();
        let mut put = |path: &str, entry: Entry| whole.insert(path, entry).unwrap();
        put("usr/bin/also", Entry::bytes(&b"file"[..], 0o755));
        for path in ["usr/bin/second", "usr/bin/third"] {
            let mut link = Entry::new(
                Kind::Hardlink {
                    target: "usr/bin/also".into(),
                },
                0o755,
            );
            link.mtime = 1;
            put(path, link);
        }
        for path in ["usr/bin/app", "usr/bin/sh", "etc/passwd", "var/log/app"] {
            put(path, Entry::bytes(&b"file"[..], 0o644));
        }
        put("bin", Entry::symlink("usr/bin"));
        put("usr/bin/tool", Entry::symlink("/etc/alternatives/tool"));
        put("etc/alternatives/tool", Entry::symlink("/bin/app"));
        put("etc/alternatives/shell", Entry::symlink("/bin/sh"));
        put("etc/made", Entry::bytes(&b"made"[..], 0o600));
        let mut new = Tree::new();
        for path in ["etc/made", "var/log/app", "usr/bin/sh"] {
            new.insert(path, Entry::bytes(&b"file"[..], 0o644)).unwrap();
        }
        let wanted = Wanted {
            packages: &["app".to_owned()],
            arch: "x",
            date: 7,
        };
        let tree = tree(&wanted, view.path(), &whole, &new).unwrap();
        let files: Vec<String> = tree
            .iter()
            .filter(|(_, entry)| !matches!(entry.kind, Kind::Dir { .. }))
            .map(|(path, _)| path.display().to_string())
            .filter(|path| !path.starts_with("var/lib/dpkg/info/"))
            .collect();
        assert_eq!(
            files,
            [
                "bin",
                "etc/alternatives/tool",
                "etc/made",
                "etc/passwd",
                "usr/bin/app",
                "usr/bin/second",
                "usr/bin/tool",
                "var/lib/dpkg/status"
            ]
        );
        let second = tree.get("usr/bin/second").unwrap();
        assert!(matches!(second.kind, Kind::File { size: 4, .. }));
    }
}
