//! `bench dockerfile`: the same Dockerfiles by kiln, by docker's BuildKit and by buildah, in turn.

use std::path::Path;
use std::time::Duration;

use super::builders::{self, Builder, Workshop};
use super::machine::{Cost, typical};
use super::report::{Section, shown};
use super::world::WorldError;
use super::{BenchError, Setting};
use crate::args::Args;

const MANY: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY tree /srv/\nCMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-h\", \"/srv\"]\n";

/// Four stages that need only their base, each of about a second of work, and one that takes from all of them.
const STAGES: &str = "\
FROM scratch AS base
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
FROM base AS one
RUN dd if=/dev/zero bs=1M count=200 | sha256sum > /one
FROM base AS two
RUN dd if=/dev/zero bs=1M count=201 | sha256sum > /two
FROM base AS three
RUN dd if=/dev/zero bs=1M count=202 | sha256sum > /three
FROM base AS four
RUN dd if=/dev/zero bs=1M count=203 | sha256sum > /four
FROM scratch
COPY --from=one /one /
COPY --from=two /two /
COPY --from=three /three /
COPY --from=four /four /
";

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let runs = args.count("--runs", 15)?;
    let first_runs = args.count("--first-runs", 3)?;
    let versions = args.count("--versions", 50)?;
    let peer_versions = args.count("--peer-versions", 4)?;
    let megabytes = args.count("--megabytes", 1000)?;
    args.end()?;
    let setting = Setting::build(&[])?;
    let workshop = Workshop::new()?;
    let builders = builders::all(&setting.kiln, &workshop.folder)?;
    let mut report = Report::new(format!(
        "bench dockerfile --runs {runs} --first-runs {first_runs} --versions {versions} --peer-versions {peer_versions} --megabytes {megabytes}"
    ));

    let context = workshop.context("many", MANY, 10_000, 4096)?;
    let wiped = |builder: &Builder, context: &Path| {
        builder.wipe()?;
        builder.build(context, "bench:first", true)
    };
    report.case(
        "10,000 files of 4 KiB, first bake",
        &builders,
        first_runs,
        |builder, _| wiped(builder, &context),
    )?;
    report.case("the same, nothing to do", &builders, runs, |builder, _| {
        builder.build(&context, "bench:first", true)
    })?;
    let mut edits = 0;
    report.case(
        "the same, one changed file",
        &builders,
        runs,
        |builder, run| {
            edits += 1;
            edit(&context, edits)?;
            builder.build(&context, &format!("bench:many-{run}"), true)
        },
    )?;

    let stages = workshop.context("stages", STAGES, 0, 0)?;
    report.case(
        "4 independent stages, no cache",
        &builders,
        first_runs,
        |builder, run| {
            // kiln gives a tag once, and what two runs bake may differ in a peer only.
            builder.build(&stages, &format!("bench:stages-{run}"), false)
        },
    )?;

    let files = megabytes;
    let context = workshop.context("large", MANY, files, 1 << 20)?;
    report.case(
        &format!("{files} files of 1 MiB, first bake"),
        &builders,
        first_runs,
        |builder, _| wiped(builder, &context),
    )?;
    report.case("the same, nothing to do", &builders, runs, |builder, _| {
        builder.build(&context, "bench:first", true)
    })?;
    report.case(
        "the same, written out for others",
        &builders,
        first_runs,
        |builder, run| {
            let to = workshop
                .folder
                .join(format!("out-{}-{run}", builder.name()));
            let cost = builder.export(&context, "bench:first", &to)?;
            let removed = if to.is_dir() {
                std::fs::remove_dir_all(&to)
            } else {
                std::fs::remove_file(&to)
            };
            removed.map_err(|source| WorldError::Io {
                what: to.display().to_string(),
                source,
            })?;
            Ok(cost)
        },
    )?;

    let one: Vec<u64> = stored(&builders)?;
    let mut changed = Vec::new();
    for builder in &builders {
        let count = match builder {
            Builder::Kiln { .. } => versions,
            Builder::Docker { .. } | Builder::Buildah { .. } => peer_versions,
        };
        let mut costs = Vec::new();
        for version in 1..count {
            edits += 1;
            edit(&context, edits)?;
            costs.push(builder.build(&context, &format!("bench:large-{version}"), true)?);
        }
        changed.push(costs);
    }
    report.row("the same, one changed file", &changed);
    let now = stored(&builders)?;
    let ratio = |at: usize, count: u64| {
        // Each further version costs what those that were baked did.
        let each = (now[at] as f64 - one[at] as f64) / (count - 1).max(1) as f64;
        (one[at] as f64 + each * (versions - 1) as f64) / one[at] as f64
    };
    report.section.notes.push(format!(
        "Storage of {versions} versions that differ in one file of the {files} MiB, in a single COPY: kiln {:.3} × one (measured; one is {} MiB, all are {} MiB), docker {:.1} ×, buildah {:.1} × (from {peer_versions} versions; one is {} and {} MiB).",
        ratio(0, versions),
        one[0] >> 20,
        now[0] >> 20,
        ratio(1, peer_versions),
        ratio(2, peer_versions),
        one[1] >> 20,
        one[2] >> 20,
    ));
    report.section.notes.push(
        "Wall time of the command (median) and processor time of the whole machine while it ran (mean), the programs in turn within each row. \"Written out\": an OCI layout, for docker its own archive, which it has instead. kiln and buildah keep layers for others compressed from the start, docker's engine unpacked only. kiln syncs what it wrote.".to_owned(),
    );
    drop(builders);
    report.section.publish("dockerfile", &setting.documents())?;
    Ok(())
}

/// One file of the tree, never the same twice.
fn edit(context: &Path, number: u64) -> Result<(), WorldError> {
    let path = context.join("tree/0/7");
    std::fs::write(&path, format!("edit {number}\n")).map_err(|source| WorldError::Io {
        what: path.display().to_string(),
        source,
    })
}

fn stored(builders: &[Builder]) -> Result<Vec<u64>, WorldError> {
    builders.iter().map(Builder::stored).collect()
}

struct Report {
    section: Section,
}

impl Report {
    fn new(command: String) -> Self {
        Self {
            section: Section {
                command,
                head: [
                    "wall / processor time",
                    "runs",
                    "kiln",
                    "docker",
                    "buildah",
                    "kiln / docker",
                    "kiln / buildah",
                ]
                .map(str::to_owned)
                .into(),
                ..Section::default()
            },
        }
    }

    /// One row: every builder in turn, so many times.
    fn case(
        &mut self,
        name: &str,
        builders: &[Builder],
        runs: u64,
        mut one: impl FnMut(&Builder, u64) -> Result<Cost, WorldError>,
    ) -> Result<(), BenchError> {
        let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); builders.len()];
        for run in 0..runs {
            for (builder, costs) in builders.iter().zip(&mut costs) {
                costs.push(one(builder, run)?);
            }
        }
        self.row(name, &costs);
        Ok(())
    }

    fn row(&mut self, name: &str, costs: &[Vec<Cost>]) {
        let all: Vec<Cost> = costs.iter().map(|costs| typical(costs)).collect();
        let cell = |cost: &Cost| format!("{} / {}", shown(cost.wall), shown(cost.cpu));
        let ratio = |peer: &Cost| {
            let of = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
            format!(
                "{:.2} / {:.2}",
                of(all[0].wall, peer.wall),
                of(all[0].cpu, peer.cpu)
            )
        };
        let counts: Vec<String> = costs.iter().map(|costs| costs.len().to_string()).collect();
        let runs = if counts.windows(2).all(|pair| pair[0] == pair[1]) {
            counts[0].clone()
        } else {
            counts.join(", ")
        };
        println!(
            "{name}: {}",
            all.iter().map(&cell).collect::<Vec<_>>().join(", ")
        );
        self.section.row([
            name.to_owned(),
            runs,
            cell(&all[0]),
            cell(&all[1]),
            cell(&all[2]),
            ratio(&all[1]),
            ratio(&all[2]),
        ]);
    }
}
