//! Which packages an image is made of: those of the lock. Where the definition asks for what the lock does not have, the lock is
//! extended and nothing of it moved, as far as that goes; versions change when that is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use kiln_model::{DebianSpec, ImageSpec, Timestamp};
use kiln_oci::Store;
use serde::Serialize;

use crate::context::beneath::beneath;
use crate::debian::archive::{self, Index, Package};
use crate::debian::changelog;
use crate::debian::fetch::{Arrivals, Client};
use crate::debian::install;
use crate::debian::lock::{ImageLock, Lock, LockedPackage};
use crate::debian::lock_entry::{arch_of, first, fits, is_kin, options, requested};
use crate::debian::repack::Repacking;
use crate::debian::resolve::{self, Resolved, Wanted};
use crate::debian::signature::Keys;
use crate::debian::sources::{self, Source};
use crate::debian::version;
use crate::error::BakeError;
use crate::progress::BakeProgress;

/// Debian's own keyring has some tens of kilobytes.
const KEYRING_LIMIT: u64 = 16 << 20;

pub struct LockRequest<'a> {
    pub image: &'a ImageSpec,
    /// The definition's folder.
    pub context: &'a Path,
    /// `None`: there is no lock yet.
    pub lock: Option<&'a Lock>,
    pub update: &'a Update,
    pub now: Timestamp,
}

/// What may get another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Only what could not be had otherwise.
    Nothing,
    Packages(BTreeSet<String>),
    All,
}

/// A lock that fits the image, and what became of it.
pub struct Locked {
    pub lock: Lock,
    /// By name; none where nothing changed.
    pub changes: Vec<PackageChange>,
}

/// A package of the lock that came, went, or has another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
    /// It mends something that the suite of security fixes mends.
    pub security: bool,
    /// What is mended, by the package's changelog where that can be had.
    pub cves: Vec<String>,
}

/// Makes the lock fit the image. Nothing is baked.
pub fn lock(
    store: &Store,
    request: &LockRequest<'_>,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<Locked, BakeError> {
    let unchanged = || request.lock.cloned().unwrap_or_default();
    let Some(debian) = &request.image.debian else {
        return Ok(Locked {
            lock: unchanged(),
            changes: Vec::new(),
        });
    };
    let before = request
        .lock
        .and_then(|lock| lock.images.get(first(request.image)));
    if *request.update == Update::Nothing && before.is_some_and(|lock| fits(lock, debian)) {
        return Ok(Locked {
            lock: unchanged(),
            changes: Vec::new(),
        });
    }
    let client = Client::new();
    let (after, index) = found(store, request, debian, &client, progress)?;
    let mut changes = changes(before, &after, &index);
    if before.is_some() {
        name_cves(store, &client, debian, &after, &mut changes);
    }
    Ok(Locked {
        lock: unchanged().with(first(request.image), after),
        changes,
    })
}

/// The image's packages, with the archive asked where the lock does not fit.
pub(crate) fn locked(
    store: &Store,
    request: &LockRequest<'_>,
    debian: &DebianSpec,
    client: &Client,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<ImageLock, BakeError> {
    let entry = request
        .lock
        .and_then(|lock| lock.images.get(first(request.image)));
    match entry {
        Some(lock) if fits(lock, debian) => Ok(lock.clone()),
        _ => found(store, request, debian, client, progress).map(|(lock, _)| lock),
    }
}

/// Nobody gets an image without security fixes who has not asked for one.
fn with_fixes(
    image: &ImageSpec,
    debian: &DebianSpec,
    sources: &[Source],
    index: &Index,
) -> Result<(), BakeError> {
    let Some(suite) = debian.security_suite() else {
        return Ok(());
    };
    let source = sources.iter().find(|source| source.suite == suite);
    if source.is_some() && !index.absent.contains(&suite) {
        return Ok(());
    }
    Err(BakeError::NoFixes {
        image: image.name.to_string(),
        place: match source {
            Some(source) => format!("at {}", source.uri),
            None => "that anything names".to_owned(),
        },
        suite,
    })
}

fn found(
    store: &Store,
    request: &LockRequest<'_>,
    debian: &DebianSpec,
    client: &Client,
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<(ImageLock, Index), BakeError> {
    progress(BakeProgress::Resolving {
        suite: debian.suite.clone(),
    });
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(request.now.0 / 1000, |since| since.as_secs());
    let keys = keys(request, debian)?;
    let sources = sources::find(debian);
    let index = archive::read(store, client, &sources, &keys, (arch_of(debian), now))?;
    with_fixes(request.image, debian, &sources, &index)?;
    let own = request
        .lock
        .and_then(|lock| lock.images.get(first(request.image)));
    // A new image has what the lock's others have, so that they have one base.
    let kin: Vec<&ImageLock> = match own {
        Some(own) => vec![own],
        None => request
            .lock
            .iter()
            .flat_map(|lock| lock.images.values())
            .collect(),
    };
    let kin: Vec<&ImageLock> = kin
        .into_iter()
        .filter(|lock| is_kin(lock, debian))
        .collect();
    let kin = if *request.update == Update::All {
        Vec::new()
    } else {
        kin
    };
    let requested = requested(debian);
    let wanted = Wanted {
        image: &request.image.name,
        suite: &debian.suite,
        arch: arch_of(debian),
        packages: &requested,
        recommends: debian.recommends,
    };
    let free = match request.update {
        Update::Packages(names) => names.clone(),
        Update::Nothing | Update::All => BTreeSet::new(),
    };
    let Resolved { base, rest } = pinned(store, &index, &kin, free, &wanted)?;
    let one = |package: Package, base: bool| LockedPackage {
        name: package.name,
        version: package.version,
        arch: package.arch,
        sha256: package.sha256,
        size: package.size,
        path: package.path,
        base,
    };
    let base = base.into_iter().map(|package| one(package, true));
    let rest = rest.into_iter().map(|package| one(package, false));
    let packages: Vec<LockedPackage> = base.chain(rest).collect();
    let date = match (request.update, own) {
        // What is there keeps its times.
        (Update::Nothing, _) => kin.iter().map(|lock| lock.date).max(),
        (_, Some(own)) if own.packages == packages => Some(own.date),
        _ => None,
    };
    let lock = ImageLock {
        suite: debian.suite.clone(),
        arch: arch_of(debian).to_owned(),
        requested,
        options: options(debian),
        absent: index.absent.clone(),
        date: date.unwrap_or(index.date),
        packages,
    };
    Ok((lock, index))
}

/// Resolves with the versions that `kin` has, but for the names in `free` and for what can't be had so.
fn pinned(
    store: &Store,
    index: &Index,
    kin: &[&ImageLock],
    mut free: BTreeSet<String>,
    wanted: &Wanted<'_>,
) -> Result<Resolved, BakeError> {
    let mut pins: BTreeMap<&str, &LockedPackage> = BTreeMap::new();
    for package in kin.iter().flat_map(|lock| &lock.packages) {
        let newest = pins.entry(&package.name).or_insert(package);
        if version::compare(&package.version, &newest.version).is_gt() {
            *newest = package;
        }
    }
    // What the archive no longer has may still be in the store.
    let in_index: BTreeSet<_> = index.packages.iter().map(|one| one.sha256).collect();
    let mut kept = Vec::new();
    for pin in pins.values() {
        if !in_index.contains(&pin.sha256) && store.has(&pin.sha256) {
            kept.push(install::package(&Repacking::at_once(store), pin)?);
        }
    }
    let mut known = in_index;
    known.extend(kept.iter().map(|package| package.sha256));
    pins.retain(|_, pin| known.contains(&pin.sha256));
    loop {
        let held = |name: &str| pins.get(name).filter(|_| !free.contains(name));
        let packages: Vec<Package> = index
            .packages
            .iter()
            .chain(&kept)
            .filter(|package| held(&package.name).is_none_or(|pin| pin.sha256 == package.sha256))
            .cloned()
            .collect();
        match resolve::resolve(wanted, &packages) {
            Ok(resolved) => return Ok(resolved),
            Err(unresolved) => {
                let before = free.len();
                let involved = unresolved.involved.into_iter();
                free.extend(involved.filter(|name| pins.contains_key(name.as_str())));
                if free.len() == before {
                    return Err(*unresolved.error);
                }
            }
        }
    }
}

fn changes(before: Option<&ImageLock>, after: &ImageLock, index: &Index) -> Vec<PackageChange> {
    let versions = |lock: &ImageLock| -> BTreeMap<String, String> {
        let one = |package: &LockedPackage| (package.name.clone(), package.version.clone());
        lock.packages.iter().map(one).collect()
    };
    let (old, new) = (before.map(versions).unwrap_or_default(), versions(after));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |name: &String| {
        let (from, to) = (old.get(name).cloned(), new.get(name).cloned());
        let security = from.as_ref().zip(to.as_ref()).is_some_and(|(from, to)| {
            index.packages.iter().any(|one| {
                one.security
                    && one.name == *name
                    && version::compare(&one.version, from).is_gt()
                    && version::compare(&one.version, to).is_le()
            })
        });
        (from != to).then(|| PackageChange {
            name: name.clone(),
            from,
            to,
            security,
            cves: Vec::new(),
        })
    };
    names.into_iter().filter_map(change).collect()
}

/// Adds what the changelogs say. The packages are fetched for that: the next bake needs them anyway. Where they can't be, it goes
/// without.
fn name_cves(
    store: &Store,
    client: &Client,
    debian: &DebianSpec,
    after: &ImageLock,
    changes: &mut [PackageChange],
) {
    let roots = package_roots(debian);
    for change in changes.iter_mut().filter(|change| change.security) {
        let mut packages = after.packages.iter();
        let Some(package) = packages.find(|one| one.name == change.name) else {
            continue;
        };
        let one = std::slice::from_ref(package);
        client.packages(store, &roots, one, &Arrivals::new(1), &|_, _| {});
        if let (Ok(deb), Some(from)) = (Repacking::at_once(store).data(package), &change.from) {
            change.cves = changelog::mended(&deb, &change.name, from)
                .into_iter()
                .collect();
        }
    }
}

/// The keys that the definition names for its archive, or Debian's.
fn keys(request: &LockRequest<'_>, debian: &DebianSpec) -> Result<Keys, BakeError> {
    let Some(path) = &debian.keyring else {
        return Keys::debian().map_err(unusable(request.image, ""));
    };
    let bytes = keyring(request.image, request.context, path)?;
    Keys::read(&bytes, "a key of the keyring").map_err(unusable(request.image, path))
}

/// The definition's file of keys.
pub(crate) fn keyring(image: &ImageSpec, context: &Path, path: &str) -> Result<Vec<u8>, BakeError> {
    let mut bytes = Vec::new();
    // A named pipe would otherwise be waited for.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    beneath(context, Path::new(path), flags)
        .map_err(std::io::Error::from)
        .and_then(|file| File::from(file).take(KEYRING_LIMIT).read_to_end(&mut bytes))
        .map_err(|error| unusable(image, path)(format!("it can't be read: {error}")))?;
    Ok(bytes)
}

fn unusable(image: &ImageSpec, keyring: &str) -> impl Fn(String) -> BakeError {
    let (image, keyring) = (image.name.to_string(), keyring.to_owned());
    move |reason| BakeError::Keyring {
        image: image.clone(),
        keyring: keyring.clone(),
        reason,
    }
}

/// Where the image's packages can be fetched.
pub(crate) fn package_roots(debian: &DebianSpec) -> Vec<String> {
    let sources = sources::find(debian).into_iter();
    let mut roots: Vec<String> = sources.map(|source| source.uri).collect();
    roots.sort();
    roots.dedup();
    roots
}
