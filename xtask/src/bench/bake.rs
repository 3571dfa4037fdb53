//! `bench bake`: what a bake and an apply cost when there is nothing to do, one file to do, or everything.

use std::time::Duration;

use super::report::{Section, quantile, shown};
use super::world::World;
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
        "`examples/hello`, the time of the whole process. \"First bake, packages in the store\" resolves, unpacks and configures anew: every record of an earlier step is gone, the packages are not.".to_owned(),
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
