//! Packages into an image: unpacked in parallel, each file by the package that it belongs to, with dpkg's own database beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::debian::archive::{Package, Priority};
use crate::debian::control;
use crate::debian::database::{self, Before, Installed, info_name};
use crate::debian::deb::{MERGED, UnpackError, Unpacked, Where, merged};
use crate::debian::fetch::Arrivals;
use crate::debian::lock::{LockedPackage, damaged};
use crate::debian::repack::Repacking;
use crate::debian::upper_dir::{UpperDir, set_time};
use crate::error::BakeError;

pub(crate) fn make_merged(root: &Path) -> Result<(), BakeError> {
    for name in MERGED {
        // Only what every image has; the others come with their packages.
        if ["lib32", "libx32"].contains(&name) {
            continue;
        }
        let usr = root.join("usr").join(name);
        fs::create_dir_all(&usr).map_err(BakeError::io(&usr))?;
        for folder in [&root.join("usr"), &usr] {
            let mode = Permissions::from_mode(0o755);
            fs::set_permissions(folder, mode).map_err(BakeError::io(folder))?;
        }
        let link = root.join(name);
        symlink(Path::new("usr").join(name), &link).map_err(BakeError::io(&link))?;
    }
    Ok(())
}

/// So that no large one is left for one processor at the end.
fn largest_first(packages: &[LockedPackage], which: &mut [usize]) {
    which.sort_by_key(|index| std::cmp::Reverse(packages[*index].size));
}

/// Does `work` for the numbers below `count`, on all processors. `None` ends it early. The results are in order.
fn parallel<T: Send>(count: usize, work: impl Fn(usize) -> Option<T> + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, T>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        return;
                    }
                    let Some(one) = work(index) else {
                        return;
                    };
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.insert(index, one);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_values().collect()
}

/// Unpacks the packages, each as soon as it is in the store. Fewer than all come back where `arrivals` has a failure.
pub(crate) fn unpack_arriving(
    from: &Repacking<'_>,
    packages: &[LockedPackage],
    (upper_dir, before): (&UpperDir, &Before),
    arrivals: &Arrivals,
) -> Vec<Installed> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    if arrivals.all_there() {
        largest_first(packages, &mut order);
    }
    let unpacked = parallel(packages.len(), |number| {
        let index = order[number];
        if !arrivals.wait(index) {
            return None;
        }
        let unpacked = open(from, &packages[index]).and_then(|mut one| {
            let place = |path: &Path| database::place(before, &one, path);
            let unpacked = unpack_one(from, &packages[index], upper_dir, &place)?;
            one.unpacked = unpacked;
            Ok(one)
        });
        match unpacked {
            Ok(one) => Some((index, one)),
            Err(error) => {
                arrivals.fail(error);
                None
            }
        }
    });
    let in_order: BTreeMap<usize, Installed> = unpacked.into_iter().collect();
    in_order.into_values().collect()
}

/// What the packages say of themselves. Nothing is unpacked.
pub(crate) fn read(
    from: &Repacking<'_>,
    packages: &[LockedPackage],
) -> Result<Vec<Installed>, BakeError> {
    parallel(packages.len(), |index| Some(open(from, &packages[index])))
        .into_iter()
        .collect()
}

/// Unpacks some of the packages over what was there before.
pub(crate) fn unpack(
    from: &Repacking<'_>,
    packages: &[LockedPackage],
    installed: &mut [Installed],
    which: &[usize],
    (upper_dir, before): (&UpperDir, &Before),
) -> Result<(), BakeError> {
    let mut which = which.to_vec();
    largest_first(packages, &mut which);
    let unpacked = parallel(which.len(), |number| {
        let index = which[number];
        let place = |path: &Path| database::place(before, &installed[index], path);
        Some(unpack_one(from, &packages[index], upper_dir, &place))
    });
    for (index, unpacked) in which.into_iter().zip(unpacked) {
        installed[index].unpacked = unpacked?;
    }
    Ok(())
}

fn open(from: &Repacking<'_>, package: &LockedPackage) -> Result<Installed, BakeError> {
    let deb = from.control(package)?;
    let control = deb.control().map_err(damaged(package))?;
    let text = control
        .get("control")
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let paragraph = control::paragraphs(&text.unwrap_or_default())
        .into_iter()
        .next()
        .ok_or_else(|| damaged(package)("it has no control file".to_owned()))?;
    Ok(Installed {
        paragraph,
        control,
        unpacked: Unpacked::default(),
    })
}

/// A package of the store as an index has it.
pub(crate) fn package(from: &Repacking<'_>, package: &LockedPackage) -> Result<Package, BakeError> {
    let Installed { paragraph, .. } = open(from, package)?;
    let LockedPackage {
        name,
        version,
        arch,
        sha256,
        size,
        path,
        base: _,
    } = package.clone();
    let field = |name: &str| paragraph.get(name).unwrap_or_default().to_owned();
    let both = [field("Pre-Depends"), field("Depends")];
    let both: Vec<String> = both.into_iter().filter(|text| !text.is_empty()).collect();
    Ok(Package {
        name,
        version,
        arch,
        essential: field("Essential") == "yes",
        priority: Priority::of(&field("Priority")),
        depends: both.join(", "),
        recommends: field("Recommends"),
        provides: field("Provides"),
        conflicts: field("Conflicts"),
        breaks: field("Breaks"),
        path,
        size,
        sha256,
        security: false,
        // Where other versions of it are.
        named: usize::MAX,
    })
}

fn unpack_one(
    from: &Repacking<'_>,
    package: &LockedPackage,
    upper_dir: &UpperDir,
    place: &Where<'_>,
) -> Result<Unpacked, BakeError> {
    let deb = from.data(package)?;
    deb.unpack(upper_dir, place).map_err(|error| match error {
        UnpackError::Damaged(reason) => damaged(package)(reason),
        UnpackError::System { path, source } => BakeError::io(path)(source),
    })
}

/// Makes of what was unpacked the packages as dpkg would have unpacked them. They are left unconfigured.
pub(crate) fn register(
    from: &Repacking<'_>,
    image: &str,
    packages: &[LockedPackage],
    installed: &mut [Installed],
    which: &[usize],
    (upper_dir, before): (&UpperDir, &Before),
) -> Result<(), BakeError> {
    let taken = replace(from, image, packages, installed, which, (upper_dir, before))?;
    let new: Vec<&Installed> = which.iter().map(|index| &installed[*index]).collect();
    let mut times: BTreeMap<&Path, i64> = BTreeMap::new();
    // Of the packages that name a new folder, the first in the lock's order decides, as it does with dpkg.
    for folder in new.iter().flat_map(|one| &one.unpacked.folders) {
        if upper_dir.is_made(&folder.place) && !times.contains_key(folder.place.as_path()) {
            times.insert(&folder.place, folder.mtime);
            let target = upper_dir.upper().join(&folder.place);
            chown(&target, Some(folder.uid), Some(folder.gid))
                .and_then(|()| fs::set_permissions(&target, Permissions::from_mode(folder.mode)))
                .map_err(BakeError::io(&target))?;
        }
    }
    database::override_modes(upper_dir, &new).map_err(BakeError::io(upper_dir.upper()))?;
    database::add(upper_dir, before, &new, &taken)?;
    for (path, time) in times.iter().rev() {
        let target = upper_dir.upper().join(path);
        set_time(&target, *time).map_err(BakeError::io(&target))?;
    }
    upper_dir.settle().map_err(BakeError::io(upper_dir.upper()))
}

/// Two packages with one path: the one that says `Replaces` has it, and neither saying so is an error. Gives the paths that packages
/// of before lost, by the name of their info files.
fn replace(
    from: &Repacking<'_>,
    image: &str,
    packages: &[LockedPackage],
    installed: &mut [Installed],
    which: &[usize],
    (upper_dir, before): (&UpperDir, &Before),
) -> Result<BTreeMap<String, BTreeSet<PathBuf>>, BakeError> {
    let mut owners: HashMap<PathBuf, (usize, &Path)> = HashMap::new();
    let mut lost: BTreeMap<usize, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut winners: BTreeSet<usize> = BTreeSet::new();
    let mut taken: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let same = |first: &str, second: &str, path: &Path| BakeError::SamePath {
        image: image.to_owned(),
        first: first.to_owned(),
        second: second.to_owned(),
        path: path.to_owned(),
    };
    for index in which.iter().copied() {
        let one = &installed[index];
        let folders: BTreeSet<&Path> = one
            .unpacked
            .folders
            .iter()
            .map(|folder| folder.path.as_path())
            .collect();
        for path in &one.unpacked.paths {
            if path.as_os_str().is_empty() || folders.contains(path.as_path()) {
                continue;
            }
            let Some(place) = before.place(&one.paragraph, path) else {
                continue;
            };
            let place = merged(&place);
            if let Some((name, paragraph)) = before.owner(&place) {
                if place != merged(path) {
                    // It was diverted to where another package has a file.
                    return Err(same(name, &packages[index].name, &place));
                }
                let diverted = before.place(paragraph, path).map(|path| merged(&path));
                let is_there = diverted.as_deref() == Some(&*place);
                let in_upper_or_link = upper_dir.upper().join(&place).is_dir();
                if is_there && !in_upper_or_link {
                    if !database::replaces(&one.paragraph, paragraph) {
                        return Err(same(name, &packages[index].name, path));
                    }
                    let paths = taken.entry(name.to_owned()).or_default();
                    paths.insert(path.clone());
                }
            }
            let Some((other, spelled)) = owners.insert(place.clone(), (index, path)) else {
                continue;
            };
            if upper_dir.upper().join(&place).is_dir() {
                continue;
            }
            let replaces = |a: usize, b: usize| {
                database::replaces(&installed[a].paragraph, &installed[b].paragraph)
            };
            // dpkg does not see that two spellings (`/lib`, `/usr/lib`) are one: who comes later has it.
            let (winner, loser, gone) = if replaces(index, other) || spelled != path {
                (index, other, spelled)
            } else if replaces(other, index) {
                owners.insert(place.clone(), (other, spelled));
                (other, index, path.as_path())
            } else {
                return Err(same(&packages[other].name, &packages[index].name, path));
            };
            winners.insert(winner);
            lost.entry(loser).or_default().insert(gone.to_owned());
        }
    }
    // In whichever order they were unpacked: the winners' files are there at the end.
    for winner in winners {
        let own = lost.get(&winner);
        let place = |path: &Path| match own {
            Some(lost) if lost.contains(path) => None,
            _ => database::place(before, &installed[winner], path),
        };
        unpack_one(from, &packages[winner], upper_dir, &place)?;
    }
    for (loser, gone) in lost {
        let paths = &mut installed[loser].unpacked.paths;
        paths.retain(|path| !gone.contains(path));
    }
    Ok(taken)
}

/// The rounds in which packages over a configured base are installed: whatever a package's `preinst` may rely on (its
/// `Pre-Depends` with all that they need) is configured in a round before. For each round also what it needs configured.
pub(crate) fn rounds(installed: &[Installed], arch: &str) -> Vec<Round> {
    let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, one) in installed.iter().enumerate() {
        let name = one.paragraph.get("Package").unwrap_or_default().to_owned();
        by_name.entry(name).or_default().insert(0, index);
        let provides = one.paragraph.get("Provides").unwrap_or_default();
        for provided in control::relations(provides, arch).into_iter().flatten() {
            by_name.entry(provided.name).or_default().push(index);
        }
    }
    let needs = |index: usize, field: &str| -> Vec<usize> {
        let text = installed[index].paragraph.get(field).unwrap_or_default();
        let groups = control::relations(text, arch);
        let one = |group: &Vec<control::Relation>| {
            let mut names = group.iter().map(|relation| &relation.name);
            names.find_map(|name| by_name.get(name)?.first().copied())
        };
        groups.iter().filter_map(one).collect()
    };
    let before: Vec<BTreeSet<usize>> = (0..installed.len())
        .map(|index| {
            let mut found = BTreeSet::new();
            if !installed[index].control.contains_key("preinst") {
                return found;
            }
            let mut queue = needs(index, "Pre-Depends");
            while let Some(next) = queue.pop() {
                // What needs the package itself can't come before it.
                if next != index && found.insert(next) {
                    queue.extend(needs(next, "Pre-Depends"));
                    queue.extend(needs(next, "Depends"));
                }
            }
            found
        })
        .collect();
    let mut round = vec![0_usize; installed.len()];
    // Each pass settles at least one more; where packages wait for each other it ends all the same.
    for _ in 0..installed.len() {
        let later: Vec<usize> = before
            .iter()
            .map(|before| before.iter().map(|b| round[*b] + 1).max().unwrap_or(0))
            .map(|at| at.min(installed.len()))
            .collect();
        if later == round {
            break;
        }
        round = later;
    }
    let mut numbers: Vec<usize> = round.clone();
    numbers.sort();
    numbers.dedup();
    // dpkg refuses to configure what is configured.
    let mut done: BTreeSet<usize> = BTreeSet::new();
    numbers
        .iter()
        .map(|number| {
            let packages: Vec<usize> = (0..installed.len())
                .filter(|index| round[*index] == *number)
                .collect();
            let configured: BTreeSet<usize> = packages
                .iter()
                .flat_map(|index| before[*index].iter().copied())
                .filter(|index| round[*index] < *number && !done.contains(index))
                .collect();
            done.extend(&configured);
            Round {
                configured: configured
                    .into_iter()
                    .map(|index| info_name(&installed[index].paragraph))
                    .collect(),
                packages,
            }
        })
        .collect()
}

pub(crate) struct Round {
    /// The names of packages of earlier rounds that are configured first.
    pub(crate) configured: Vec<String>,
    pub(crate) packages: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::debian::deb::Control;

    fn package(name: &str, fields: &str, preinst: bool) -> Installed {
        let text = format!("Package: {name}\n{fields}");
        let mut control = Control::new();
        if preinst {
            control.insert("preinst".into(), Vec::new());
        }
        Installed {
            paragraph: control::paragraphs(&text).remove(0),
            control,
            unpacked: Unpacked::default(),
        }
    }

    #[test]
    fn a_configuration_file_waits_for_its_package() {
        let mut one = package("p", "", false);
        let list = b"/etc/p.conf\n/etc/caf\xe9\nremove-on-upgrade /etc/old\n".to_vec();
        one.control.insert("conffiles".into(), list);
        assert_eq!(
            one.conffiles().collect::<Vec<_>>(),
            [
                Path::new("etc/p.conf"),
                Path::new(OsStr::from_bytes(b"etc/caf\xe9"))
            ]
        );
        let upper = tempfile::tempdir().unwrap();
        let configured = Before::read(&UpperDir::new(upper.path(), None), false).unwrap();
        for (before, path, place) in [
            (&Before::nothing(false), "etc/p.conf", "etc/p.conf"),
            (&configured, "etc/p.conf", "etc/p.conf.dpkg-new"),
            (&configured, "etc/old", "etc/old"),
        ] {
            let found = database::place(before, &one, Path::new(path)).unwrap();
            assert_eq!(found, Path::new(place));
        }
    }

    #[test]
    fn a_preinst_comes_after_all_that_it_may_rely_on() {
        let all = [
            package("library", "", false),
            package(
                "tool",
                "Depends: library\nMulti-Arch: same\nArchitecture: x",
                true,
            ),
            package("server", "Pre-Depends: adder | virtual, essential", true),
            package("adder-2", "Provides: adder\nDepends: tool", false),
            package("plugin", "Pre-Depends: server", true),
            package("plain", "Pre-Depends: server", false),
            package("circle-a", "Pre-Depends: circle-b", true),
            package("circle-b", "Pre-Depends: circle-a", true),
        ];
        let rounds = rounds(&all, "x");
        assert_eq!(rounds[0].packages, [0, 1, 3, 5]);
        assert!(rounds[0].configured.is_empty());
        assert_eq!(rounds[1].packages, [2]);
        assert_eq!(rounds[1].configured, ["library", "tool:x", "adder-2"]);
        assert_eq!(rounds[2].packages, [4]);
        assert_eq!(
            rounds[2].configured,
            ["server"],
            "the others are configured"
        );
        let circle: Vec<_> = rounds[3..].iter().flat_map(|r| &r.packages).collect();
        assert_eq!(circle, [&6, &7]);
    }
}
