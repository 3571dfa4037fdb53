//! `bench bake`: what a bake and an apply cost when there is nothing to do, one file to do, or everything.

use std::collections::BTreeSet;
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
        forget_all_but_packages(&world.root.join("store"), &world.project.join("kiln.lock"))?;
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
    let left = world.end()?;
    drop(world);

    section.notes.push(
        "`examples/hello`, the time of the whole process. \"First bake, packages in the store\" unpacks and configures anew: of the store only the blobs that `kiln.lock` names are left.".to_owned(),
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

/// Removes every file of a store but the blobs whose digests the lock names: those are the packages.
pub(super) fn forget_all_but_packages(store: &Path, lock: &Path) -> Result<(), WorldError> {
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
            if !package {
                std::fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
    }
    Ok(())
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
        std::fs::write(folder.join("store/cache").join(&package), "").unwrap();
        forget_all_but_packages(&folder.join("store"), &lock).unwrap();
        let left: Vec<bool> = [
            blobs.join(&package),
            blobs.join(&layer),
            folder.join("store/cache").join(&package),
        ]
        .iter()
        .map(|path| path.exists())
        .collect();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, [true, false, false]);
    }
}
