//! `bench bake`: what a bake and an apply cost when there is nothing to do, one file to do, or everything.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::report::{Section, quantile, shown};
use super::world::{World, WorldError};
use super::{BenchError, Setting, expect};
use crate::args::Args;

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let runs = args.count("--runs", 25)?;
    let first_runs = args.count("--first-runs", 5)?;
    args.end()?;
    let setting = Setting::build(&[])?;

    let mut section = Section {
        command: format!("bench bake --runs {runs} --first-runs {first_runs}"),
        head: ["", "runs", "median", "shortest", "longest"]
            .map(str::to_owned)
            .into(),
        ..Section::default()
    };
    let mut row = |name: &str, samples: &[Duration]| {
        section.row([
            name.to_owned(),
            samples.len().to_string(),
            shown(quantile(samples, 500)),
            shown(quantile(samples, 0)),
            shown(quantile(samples, 1000)),
        ]);
    };

    let mut world = World::new(&setting.kiln, &setting.example("hello"), "hello")?;
    let cold = world.kiln(&["bake"])?.wall;
    row("first bake, packages from the mirror", &[cold]);
    let mut first = Vec::new();
    for _ in 0..first_runs {
        let lock = world.project.join("kiln.lock");
        forget_all_but_packages(&world.root.join("store"), &lock, Keep::Archives)?;
        first.push(world.kiln(&["bake"])?.wall);
    }
    row("first bake, packages in the store", &first);

    let nothing = repeat(runs, || Ok(world.kiln(&["bake"])?.wall))?;
    row("bake with nothing to do", &nothing);
    let changed = repeat(runs, || {
        world.edit_file()?;
        Ok(world.kiln(&["bake"])?.wall)
    })?;
    row("bake with one changed file", &changed);

    world.up()?;
    let apply = repeat(runs, || Ok(world.kiln(&["apply"])?.wall))?;
    row("apply with nothing to do", &apply);
    let up = repeat(runs, || Ok(world.up()?.wall))?;
    row("up with nothing to do", &up);
    let left = world.end()?;
    drop(world);

    section.notes.push(
        "`examples/hello`, the time of the whole process. \"First bake, packages in the store\" unpacks and configures anew: of the store only the blobs that `kiln.lock` names are left. A changed file has the image's test run again: a container in which python starts and answers.".to_owned(),
    );
    section.publish("bake", &setting.documents())?;
    expect("left after `kiln down`", &Vec::new(), &left)
}

fn repeat(
    runs: u64,
    mut one: impl FnMut() -> Result<Duration, BenchError>,
) -> Result<Vec<Duration>, BenchError> {
    (0..runs).map(|_| one()).collect()
}

/// What of its packages a store keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The .deb files alone.
    Archives,
    /// Those, and the form that is quick to unpack, which the first bake made of them.
    Repacked,
}

/// Removes every file of a store but its packages: the blobs whose digests the lock names, and perhaps what was made of each.
pub(super) fn forget_all_but_packages(
    store: &Path,
    lock: &Path,
    keep: Keep,
) -> Result<(), WorldError> {
    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |source| WorldError::Io { what, source }
    };
    let text = std::fs::read_to_string(lock).map_err(failed(lock))?;
    let packages: BTreeSet<&str> = text
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .collect();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(failed(&folder))? {
            let path = entry.map_err(failed(&folder))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let package = folder.ends_with("blobs/sha256")
                && path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| packages.contains(name));
            let repacked = keep == Keep::Repacked
                && folder.ends_with("cache")
                && is_archive(&path).map_err(failed(&path))?;
            if !package && !repacked {
                std::fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
    }
    Ok(())
}

/// Whether a record holds a package: an ar archive (ar(5)) behind its own digest.
fn is_archive(record: &Path) -> std::io::Result<bool> {
    let mut head = Vec::new();
    std::fs::File::open(record)?
        .take(40)
        .read_to_end(&mut head)?;
    Ok(head.get(32..) == Some(b"!<arch>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_lock_names_is_left_of_a_store() {
        let folder = std::env::temp_dir().join(format!("xtask-bake-{}", std::process::id()));
        let (package, layer) = ("a".repeat(64), "b".repeat(64));
        let blobs = folder.join("store/blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(folder.join("store/cache")).unwrap();
        let lock = folder.join("kiln.lock");
        std::fs::write(&lock, format!("sha256 = \"{package}\"\n")).unwrap();
        for name in [&package, &layer] {
            std::fs::write(blobs.join(name), "").unwrap();
        }
        let cache = folder.join("store/cache");
        std::fs::write(cache.join(&package), "").unwrap();
        let archive = [&[0; 32][..], b"!<arch>\n"].concat();
        std::fs::write(cache.join("archive"), archive).unwrap();
        let left = |keep| {
            forget_all_but_packages(&folder.join("store"), &lock, keep).unwrap();
            [
                blobs.join(&package),
                blobs.join(&layer),
                cache.join(&package),
                cache.join("archive"),
            ]
            .map(|path| path.exists())
        };
        assert_eq!(left(Keep::Repacked), [true, false, false, true]);
        assert_eq!(left(Keep::Archives), [true, false, false, false]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
