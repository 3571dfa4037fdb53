//! `bench rollback`: back to a set that is still warm, and forth again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kiln_model::api::Outcome;

use super::report::{Section, quantile, shown};
use super::switch::current;
use super::world::{World, WorldError};
use super::{BenchError, Setting, expect};
use crate::args::Args;
use crate::load::{Gate, Load, LoadOptions};

/// Rollbacks whose system calls are counted, apart from those that are timed.
const TRACED: u64 = 20;

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let count = args.count("--n", 200)?;
    let rate = args.count("--rate", 300)?;
    args.end()?;
    let setting = Setting::build(&[])?;

    let mut world = World::new(&setting.kiln, &setting.example("bench"), "bench")?;
    world.up()?;
    let first = current(&world)?;
    world.edit_environment()?;
    world.rollout(&["apply"])?;
    let second = current(&world)?;
    let mut pair = Pair {
        current: second,
        other: first,
    };

    let mut section = Section {
        command: format!("bench rollback --n {count} --rate {rate}"),
        head: ["", "median", "p99", "longest"].map(str::to_owned).into(),
        ..Section::default()
    };
    let idle = measure(&world, &mut pair, count)?;
    rows(&mut section, "at rest", &idle);
    let gate = Arc::new(Gate::new([first, second]));
    let load = Load::start(
        LoadOptions {
            address: world.address,
            workers: 16,
            rate,
            timeout: Duration::from_secs(10),
        },
        &gate,
    );
    let loaded = measure(&world, &mut pair, count)?;
    let tally = load.finish();
    rows(&mut section, "under load", &loaded);

    let syncs = count_syncs(&world, &mut pair)?;
    let left = world.end()?;
    drop(world);

    section.notes.push(format!(
        "{count} rollbacks there and back at rest, and {count} under {rate} requests a second, of which {} of {} were lost. \"command\" is the whole process, from its start to its end; the phases are the daemon's own.",
        tally.lost_by_kind(),
        tally.requests()
    ));
    section.notes.push(match syncs {
        Some(syncs) => format!(
            "Of {TRACED} rollbacks traced apart: {:.1} fsync or fdatasync each in the controller, {:.1} in the proxy.",
            syncs.controller as f64 / TRACED as f64,
            syncs.proxy as f64 / TRACED as f64
        ),
        None => "fsync and fdatasync were not counted: strace is not installed.".to_owned(),
    });
    section.publish("rollback", &setting.documents())?;
    expect("left after `kiln down`", &Vec::new(), &left)?;
    expect("requests lost", &0, &tally.lost_in_all())
}

struct Pair {
    current: u64,
    other: u64,
}

struct Measured {
    command: Vec<Duration>,
    daemon: Vec<Duration>,
    phases: BTreeMap<String, Vec<Duration>>,
}

fn roll(world: &World, pair: &mut Pair) -> Result<(Outcome, Duration), BenchError> {
    let to = pair.other.to_string();
    let (outcome, wall) = world.rollout(&["rollback", "bench", "--to", &to])?;
    expect(
        "release after a rollback",
        &Some(pair.other),
        &outcome.to.map(|n| n.0),
    )?;
    std::mem::swap(&mut pair.current, &mut pair.other);
    Ok((outcome, wall))
}

fn measure(world: &World, pair: &mut Pair, count: u64) -> Result<Measured, BenchError> {
    let mut measured = Measured {
        command: Vec::new(),
        daemon: Vec::new(),
        phases: BTreeMap::new(),
    };
    for _ in 0..count {
        let (outcome, wall) = roll(world, pair)?;
        measured.command.push(wall);
        measured
            .daemon
            .push(Duration::from_millis(outcome.duration_ms));
        for phase in outcome.phases {
            let samples = measured.phases.entry(phase.phase).or_default();
            samples.push(Duration::from_micros(phase.duration_us));
        }
    }
    Ok(measured)
}

fn rows(section: &mut Section, when: &str, measured: &Measured) {
    let mut row = |name: &str, samples: &[Duration]| {
        section.row([
            format!("{when}: {name}"),
            shown(quantile(samples, 500)),
            shown(quantile(samples, 990)),
            shown(quantile(samples, 1000)),
        ]);
    };
    row("command", &measured.command);
    row("daemon, whole rollout", &measured.daemon);
    for (phase, samples) in &measured.phases {
        row(&format!("phase `{phase}`"), samples);
    }
}

struct Syncs {
    controller: usize,
    proxy: usize,
}

/// Traces controller and proxy through rollbacks; `None` where there is no strace.
fn count_syncs(world: &World, pair: &mut Pair) -> Result<Option<Syncs>, BenchError> {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join("strace").is_file())
    });
    if !found {
        return Ok(None);
    }
    let controller = Trace::start(world, "serve")?;
    let proxy = Trace::start(world, "proxy")?;
    for _ in 0..TRACED {
        roll(world, pair)?;
    }
    Ok(Some(Syncs {
        controller: controller.end()?,
        proxy: proxy.end()?,
    }))
}

/// strace on every thread of one process.
struct Trace {
    strace: Child,
    file: std::path::PathBuf,
}

impl Trace {
    fn start(world: &World, role: &str) -> Result<Self, BenchError> {
        let pids = world.processes(role);
        let &[pid] = pids.as_slice() else {
            return Err(BenchError::Broken {
                what: format!("processes with `{role}`"),
                expected: "one".to_owned(),
                found: format!("{pids:?}"),
            });
        };
        let file = world.project.join(format!("{role}.strace"));
        let strace = Command::new("strace")
            .args([
                "-f",
                "-q",
                "-e",
                "trace=fsync,fdatasync,sync_file_range,msync",
                "-p",
            ])
            .arg(pid.to_string())
            .arg("-o")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("strace"))?;
        let trace = Self { strace, file };
        world.wait_until("strace to attach", Duration::from_secs(10), || {
            Ok(traced(pid))
        })?;
        Ok(trace)
    }

    fn end(mut self) -> Result<usize, BenchError> {
        let pid = i32::try_from(self.strace.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // On SIGINT it detaches and leaves its target running.
            rustix::process::kill_process(pid, rustix::process::Signal::INT)
                .map_err(|errno| failed("strace")(errno.into()))?;
        }
        self.strace.wait().map_err(failed("strace"))?;
        let text = std::fs::read_to_string(&self.file).map_err(failed("strace's file"))?;
        // Definition and image must not see it.
        std::fs::remove_file(&self.file).map_err(failed("strace's file"))?;
        let calls = ["fsync(", "fdatasync(", "sync_file_range(", "msync("];
        Ok(text
            .lines()
            .filter(|line| calls.iter().any(|call| line.contains(call)))
            .count())
    }
}

fn traced(pid: u32) -> bool {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    std::fs::read_dir(tasks).is_ok_and(|tasks| {
        tasks.filter_map(Result::ok).all(|task| {
            std::fs::read_to_string(task.path().join("status"))
                .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
        })
    })
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.to_owned();
    move |source| BenchError::World(WorldError::Io { what, source })
}
