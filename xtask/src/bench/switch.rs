//! `bench switch`: applies and rollbacks in turn under constant load; what is lost is counted by the client.

use std::sync::Arc;
use std::time::Duration;

use super::report::{Section, quantile, shown};
use super::world::{World, WorldError};
use super::{BenchError, Setting, expect};
use crate::args::Args;
use crate::load::{Gate, Load, LoadOptions};

const TIMEOUT: Duration = Duration::from_secs(10);
/// For the load to come as far as its share of a cycle.
const SHARE_DEADLINE: Duration = Duration::from_secs(3600);

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let cycles = args.count("--cycles", 50)?;
    let requests = args.count("--requests", 100_000)?;
    let workers = args.count("--workers", 32)?;
    let rate = args.count("--rate", 1000)?;
    args.end()?;
    let setting = Setting::build(&[])?;

    let mut world = World::new(&setting.kiln, &setting.example("bench"), "bench")?;
    world.up()?;
    let first = current(&world)?;
    let gate = Arc::new(Gate::new([first]));
    let load = Load::start(
        LoadOptions {
            address: world.address,
            workers,
            rate,
            timeout: TIMEOUT,
        },
        &gate,
    );
    let (mut applies, mut rollbacks) = (Vec::new(), Vec::new());
    let mut counted_by_kiln = 0;
    let mut newest = first;
    for cycle in 0..cycles {
        if cycle % 2 == 0 {
            world.edit_environment()?;
        } else {
            world.edit_file()?;
        }
        newest += 1;
        gate.allow([first, newest]);
        let (outcome, wall) = world.rollout(&["apply"])?;
        gate.allow([newest]);
        expect(
            "release after an apply",
            &Some(newest),
            &outcome.to.map(|n| n.0),
        )?;
        applies.push(wall);
        counted_by_kiln += outcome.requests.failed;

        // The new release has the traffic for half of the cycle's share of requests.
        reach(&world, &load, requests * (2 * cycle + 1) / (2 * cycles))?;
        gate.allow([first, newest]);
        let (outcome, wall) = world.rollout(&["rollback", "bench"])?;
        gate.allow([first]);
        expect(
            "release after a rollback",
            &Some(first),
            &outcome.to.map(|n| n.0),
        )?;
        rollbacks.push(wall);
        counted_by_kiln += outcome.requests.failed;
        reach(&world, &load, requests * (2 * cycle + 2) / (2 * cycles))?;
        eprintln!(
            "cycle {} of {cycles}: {} requests, {} lost",
            cycle + 1,
            load.requests(),
            load.lost()
        );
    }
    let tally = load.finish();
    let left = world.end()?;
    drop(world);

    let mut section = Section {
        command: format!(
            "bench switch --cycles {cycles} --requests {requests} --workers {workers} --rate {rate}"
        ),
        head: [
            "applies + rollbacks",
            "requests",
            "lost",
            "p50",
            "p99",
            "longest",
        ]
        .map(str::to_owned)
        .into(),
        ..Section::default()
    };
    let latency = |per_mille| tally.latency(per_mille).map_or("-".to_owned(), shown);
    section.row([
        format!("{} + {}", applies.len(), rollbacks.len()),
        tally.requests().to_string(),
        tally.lost_by_kind(),
        latency(500),
        latency(990),
        latency(1000),
    ]);
    section.notes.push(format!(
        "Half of the requests are POSTs whose body comes back, half are on new connections, one in a hundred is answered after 500 ms (and is not in the latencies), one in twenty is 128 KiB in chunks; {:.0} requests a second. Every answer is compared byte by byte and has to come from a release that may serve at that time.",
        tally.requests() as f64 / tally.elapsed.as_secs_f64()
    ));
    section.notes.push(format!(
        "The whole command took, median and longest: apply {} and {} (every second one bakes a changed file), rollback {} and {}. kiln itself counted {counted_by_kiln} failed requests during them.",
        shown(quantile(&applies, 500)),
        shown(quantile(&applies, 1000)),
        shown(quantile(&rollbacks, 500)),
        shown(quantile(&rollbacks, 1000)),
    ));
    for record in tally.details.iter().take(20) {
        section.notes.push(format!("Lost {record}."));
    }
    section.publish("switch", &setting.documents())?;
    expect("left after `kiln down`", &Vec::new(), &left)?;
    expect("requests lost", &0, &tally.lost_in_all())
}

/// The number of the release that has the traffic.
pub(super) fn current(world: &World) -> Result<u64, BenchError> {
    let status = world.status()?;
    let release = status.release.ok_or_else(|| BenchError::Broken {
        what: "release with the traffic".to_owned(),
        expected: "one".to_owned(),
        found: "none".to_owned(),
    })?;
    Ok(release.number.0)
}

fn reach(world: &World, load: &Load, requests: u64) -> Result<(), WorldError> {
    world.wait_until("the load", SHARE_DEADLINE, || {
        Ok(load.requests() >= requests)
    })
}
