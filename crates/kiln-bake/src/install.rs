//! Packages into a root folder: unpacked in parallel, with dpkg's own database written as dpkg would have, so that the image's dpkg
//! takes over from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_oci::Store;
use md5::{Digest as _, Md5};

use crate::control::{self, Paragraph, relations};
use crate::deb::{Control, Deb, MERGED, UnpackError, Unpacked, set_time};
use crate::error::BakeError;
use crate::fetch::Arrivals;
use crate::lock::{ImageLock, LockedPackage};

/// The largest package of Debian is some hundreds of megabytes.
const PACKAGE_LIMIT: u64 = 4 << 30;

/// A package whose files are in place.
pub(crate) struct Installed {
    paragraph: Paragraph,
    control: Control,
    unpacked: Unpacked,
}

/// Makes of what `unpack` left below `root` the packages as dpkg would have unpacked them. They are left unconfigured.
pub(crate) fn register(
    store: &Store,
    image: &str,
    lock: &ImageLock,
    installed: &mut [Installed],
    root: &Path,
) -> Result<Vec<String>, BakeError> {
    replace(store, image, lock, root, installed)?;
    for one in installed.iter() {
        // Owners and modes of folders: the last package to name one decides, in the lock's order.
        for (path, uid, gid, mode, _) in &one.unpacked.folders {
            let target = root.join(path);
            if fs::symlink_metadata(&target).is_ok_and(|there| there.is_dir()) {
                chown(&target, Some(*uid), Some(*gid))
                    .and_then(|()| fs::set_permissions(&target, Permissions::from_mode(*mode)))
                    .map_err(BakeError::io(&target))?;
            }
        }
    }
    write_database(root, installed)?;
    let mut times: BTreeMap<&Path, i64> = BTreeMap::new();
    for (path, _, _, _, time) in installed.iter().flat_map(|one| &one.unpacked.folders) {
        times.insert(path, *time);
    }
    for (path, time) in times.iter().rev() {
        let target = root.join(path);
        set_time(&target, *time).map_err(BakeError::io(&target))?;
    }
    Ok(installed
        .iter()
        .map(|one| info_name(&one.paragraph))
        .collect())
}

fn make_merged(root: &Path) -> Result<(), BakeError> {
    for name in MERGED {
        // Only what every image has; the others come with their packages.
        if ["lib32", "libx32"].contains(&name) {
            continue;
        }
        let usr = root.join("usr").join(name);
        fs::create_dir_all(&usr).map_err(BakeError::io(&usr))?;
        let link = root.join(name);
        symlink(Path::new("usr").join(name), &link).map_err(BakeError::io(&link))?;
    }
    Ok(())
}

/// Unpacks the packages below `root`, an empty folder, each as soon as it is in the store. Fewer than all come back where
/// `arrivals` has a failure.
pub(crate) fn unpack(
    store: &Store,
    packages: &[LockedPackage],
    root: &Path,
    arrivals: &Arrivals,
) -> Vec<Installed> {
    if let Err(error) = make_merged(root) {
        arrivals.fail(error);
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Installed>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(package) = packages.get(index) else {
                        return;
                    };
                    if !arrivals.wait(index) {
                        return;
                    }
                    match unpack_one(store, package, root) {
                        Ok(one) => {
                            done.lock()
                                .unwrap_or_else(std::sync::PoisonError::into_inner)
                                .insert(index, one);
                        }
                        Err(error) => arrivals.fail(error),
                    }
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .into_values()
        .collect()
}

fn damaged(package: &LockedPackage) -> impl Fn(String) -> BakeError {
    let package = format!("{} {}", package.name, package.version);
    move |reason| BakeError::Package {
        package: package.clone(),
        reason,
    }
}

fn unpack_one(store: &Store, package: &LockedPackage, root: &Path) -> Result<Installed, BakeError> {
    let deb = Deb::new(store.read_blob(&package.sha256, PACKAGE_LIMIT)?);
    let control = deb.control().map_err(damaged(package))?;
    let text = control
        .get("control")
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let paragraph = control::paragraphs(&text.unwrap_or_default())
        .into_iter()
        .next()
        .ok_or_else(|| damaged(package)("it has no control file".to_owned()))?;
    let unpacked = deb.unpack(root).map_err(|error| match error {
        UnpackError::Damaged(reason) => damaged(package)(reason),
        UnpackError::System { path, source } => BakeError::io(path)(source),
    })?;
    Ok(Installed {
        paragraph,
        control,
        unpacked,
    })
}

/// Two packages with one path: the one that says `Replaces` has it, and neither saying so is an error.
fn replace(
    store: &Store,
    image: &str,
    lock: &ImageLock,
    root: &Path,
    installed: &mut [Installed],
) -> Result<(), BakeError> {
    let mut owners: BTreeMap<&Path, usize> = BTreeMap::new();
    let mut again: BTreeSet<usize> = BTreeSet::new();
    let mut lost: Vec<(usize, PathBuf)> = Vec::new();
    for (index, one) in installed.iter().enumerate() {
        let folders: BTreeSet<_> = one
            .unpacked
            .folders
            .iter()
            .map(|(path, ..)| path.as_path())
            .collect();
        for path in &one.unpacked.paths {
            if path.as_os_str().is_empty()
                || folders.contains(path.as_path())
                || root.join(path).is_dir()
            {
                continue;
            }
            let Some(other) = owners.insert(path, index) else {
                continue;
            };
            let replaces = |a: usize, b: usize| {
                let text = installed[a].paragraph.get("Replaces").unwrap_or("");
                let version = installed[b].paragraph.get("Version").unwrap_or("");
                relations(text, &lock.arch)
                    .iter()
                    .flatten()
                    .any(|relation| {
                        Some(relation.name.as_str()) == installed[b].paragraph.get("Package")
                            && relation.admits(version)
                    })
            };
            let (winner, loser) = if replaces(index, other) {
                (index, other)
            } else if replaces(other, index) {
                (other, index)
            } else {
                return Err(BakeError::SamePath {
                    image: image.to_owned(),
                    first: lock.packages[other].name.clone(),
                    second: lock.packages[index].name.clone(),
                    path: path.clone(),
                });
            };
            owners.insert(path, winner);
            again.insert(winner);
            lost.push((loser, path.clone()));
        }
    }
    for (loser, path) in lost {
        installed[loser].unpacked.paths.retain(|kept| *kept != path);
    }
    for winner in again {
        unpack_one(store, &lock.packages[winner], root)?;
    }
    Ok(())
}

/// The name of the package's files below `info`: those of more than one architecture carry theirs.
fn info_name(paragraph: &Paragraph) -> String {
    let name = paragraph.get("Package").unwrap_or_default();
    match (paragraph.get("Multi-Arch"), paragraph.get("Architecture")) {
        (Some("same"), Some(arch)) => format!("{name}:{arch}"),
        _ => name.to_owned(),
    }
}

fn write_database(root: &Path, installed: &[Installed]) -> Result<(), BakeError> {
    let dpkg = root.join("var/lib/dpkg");
    for name in ["info", "updates", "triggers", "alternatives", "parts"] {
        let folder = dpkg.join(name);
        fs::create_dir_all(&folder).map_err(BakeError::io(&folder))?;
    }
    let write = |path: &Path, bytes: &[u8], mode: u32| {
        fs::write(path, bytes)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(BakeError::io(path))
    };
    let (mut status, mut file_triggers) = (String::new(), String::new());
    let mut named_triggers: BTreeMap<String, String> = BTreeMap::new();
    for one in installed {
        let info = info_name(&one.paragraph);
        let mut paragraph = one.paragraph.clone();
        paragraph.set("Status", "install ok unpacked");
        if let Some(conffiles) = one.control.get("conffiles") {
            let mut field = String::new();
            for path in String::from_utf8_lossy(conffiles)
                .lines()
                .filter(|line| line.starts_with('/'))
            {
                if let Ok(bytes) = fs::read(root.join(path.trim_start_matches('/'))) {
                    let sum = Md5::digest(bytes);
                    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
                    field.push_str(&format!("\n {path} {hex}"));
                }
            }
            if !field.is_empty() {
                paragraph.set("Conffiles", &field);
            }
        }
        status.push_str(&paragraph.write());
        status.push('\n');
        let mut list = String::new();
        for path in &one.unpacked.paths {
            list.push_str(if path.as_os_str().is_empty() {
                "/."
            } else {
                "/"
            });
            list.push_str(&path.to_string_lossy());
            list.push('\n');
        }
        write(
            &dpkg.join(format!("info/{info}.list")),
            list.as_bytes(),
            0o644,
        )?;
        for (name, bytes) in &one.control {
            if name == "control" {
                continue;
            }
            let script =
                ["preinst", "postinst", "prerm", "postrm", "config"].contains(&name.as_str());
            let path = dpkg.join(format!("info/{info}.{name}"));
            write(&path, bytes, if script { 0o755 } else { 0o644 })?;
        }
        let triggers = one
            .control
            .get("triggers")
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        for line in triggers.unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let Some(rest) = directive.strip_prefix("interest") else {
                continue;
            };
            let wait = if rest == "-noawait" { "/noawait" } else { "" };
            if trigger.starts_with('/') {
                file_triggers.push_str(&format!("{trigger} {info}{wait}\n"));
            } else {
                named_triggers
                    .entry(trigger.to_owned())
                    .or_default()
                    .push_str(&format!("{info}{wait}\n"));
            }
        }
    }
    write(&dpkg.join("status"), status.as_bytes(), 0o644)?;
    write(&dpkg.join("available"), b"", 0o644)?;
    write(&dpkg.join("info/format"), b"1\n", 0o644)?;
    write(&dpkg.join("triggers/File"), file_triggers.as_bytes(), 0o644)?;
    for (name, packages) in named_triggers {
        write(
            &dpkg.join("triggers").join(name),
            packages.as_bytes(),
            0o644,
        )?;
    }
    Ok(())
}
