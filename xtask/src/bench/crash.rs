//! `bench crash`: the controller killed right after every named effect of real rollouts, then the proxy, under
//! constant load. What must hold: nothing lost while the controller dies, every rollout ends, what survives is
//! the very same process, and nothing is left over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_model::api::{InstanceState, InstanceStatus, ServiceStatus};
use rustix::process::{Pid, Signal, kill_process};

use super::leaks::{Surroundings, processes};
use super::report::{Section, quantile, shown};
use super::switch::current;
use super::world::{World, WorldError};
use super::{BenchError, Setting, expect};
use crate::args::Args;
use crate::load::{Gate, Load, LoadOptions, Tally};

/// The effects of an apply that the controller can be killed after, as its feature `crash-points` names them;
/// `listen` comes with a new service alone and has a trial of its own.
const EFFECTS: &[&str] = &[
    "commit", "start", "probe", "route", "confirm", "drain", "stop", "remove",
];
const SETTLE_DEADLINE: Duration = Duration::from_secs(120);
const RESTART_DEADLINE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(mut args: Args) -> Result<(), BenchError> {
    let depth = args.count("--depth", 4)?;
    let proxy_kills = args.count("--proxy-kills", 10)?;
    let rate = args.count("--rate", 300)?;
    args.end()?;
    let setting = Setting::build(&["crash-points"])?;

    let before = Surroundings::now();
    let mut world = World::new(&setting.kiln, &setting.example("bench"), "bench")?;
    world.up()?;
    world.edit_environment()?;
    world.rollout(&["apply"])?;
    let settled = settle(&world)?;
    let size = Size::now(&world, &before);
    let gate = Arc::new(Gate::new([current(&world)?]));
    let options = LoadOptions {
        address: world.address,
        workers: 16,
        rate,
        timeout: TIMEOUT,
    };
    let mut section = Section {
        command: format!("bench crash --depth {depth} --proxy-kills {proxy_kills} --rate {rate}"),
        head: [
            "killed",
            "times",
            "requests",
            "lost",
            "back within, median / longest",
        ]
        .map(str::to_owned)
        .into(),
        ..Section::default()
    };

    let mut trials = Trials {
        instances: settled.instances.len(),
        size,
        before: &before,
        gate: &gate,
    };
    for effect in EFFECTS {
        let load = Load::start(options, &gate);
        let mut back = Vec::new();
        for nth in 1..=depth {
            match trials.controller(&mut world, effect, nth)? {
                Some(restart) => back.push(restart),
                None => break,
            }
        }
        let tally = load.finish();
        eprintln!(
            "{effect}: {} kills, lost {}",
            back.len(),
            tally.lost_by_kind()
        );
        row(
            &mut section,
            &format!("controller after `{effect}`"),
            &back,
            &tally,
        );
        expect(
            format!(
                "requests lost while the controller was killed after `{effect}`: {:?}",
                tally.details
            ),
            &0,
            &tally.lost_in_all(),
        )?;
    }

    let load = Load::start(options, &gate);
    let back = trials.listen(&world, options)?;
    let tally = load.finish();
    row(
        &mut section,
        "controller after `listen` (a new service)",
        &[back],
        &tally,
    );
    expect(
        "requests lost while the controller was killed after `listen`",
        &0,
        &tally.lost_in_all(),
    )?;

    for (when, during_apply) in [("at rest", false), ("during an apply", true)] {
        let load = Load::start(options, &gate);
        let mut back = Vec::new();
        for _ in 0..proxy_kills {
            back.push(trials.proxy(&mut world, during_apply)?);
        }
        let tally = load.finish();
        row(&mut section, &format!("proxy {when}"), &back, &tally);
    }

    let left = world.end()?;
    drop(world);
    section.notes.push(format!(
        "An apply of a new release runs into each kill; the controller dies after the first, second … {depth}th effect of that name, for as long as an apply has so many. After each: the rollout had ended, the set that had the traffic before ran on with the same ids, pids and start times, and there were as many processes, mounts, control groups and network interfaces as before. {rate} requests a second."
    ));
    section.notes.push(
        "A killed proxy takes what is in flight with it; new connections wait in the listening socket, which the supervisor keeps.".to_owned(),
    );
    section.publish("crash", &setting.documents())?;
    expect("left after `kiln down`", &Vec::new(), &left)?;
    expect(
        "left of the machine",
        &Vec::new(),
        &Surroundings::now().since(&before),
    )
}

fn row(section: &mut Section, killed: &str, back: &[Duration], tally: &Tally) {
    section.row([
        killed.to_owned(),
        back.len().to_string(),
        tally.requests().to_string(),
        tally.lost_by_kind(),
        if back.is_empty() {
            "no apply has this effect".to_owned()
        } else {
            format!(
                "{} / {}",
                shown(quantile(back, 500)),
                shown(quantile(back, 1000))
            )
        },
    ]);
}

/// How much of the machine a settled world takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    processes: usize,
    mounts: usize,
    control_groups: usize,
    interfaces: usize,
}

impl Size {
    fn now(world: &World, before: &Surroundings) -> Self {
        let (groups_before, interfaces_before) = before.counts();
        let (control_groups, interfaces) = Surroundings::now().counts();
        let alive = super::leaks::of(&world.root).len();
        let processes = processes(&world.root).len();
        Self {
            processes,
            mounts: alive - processes,
            control_groups: control_groups - groups_before,
            interfaces: interfaces - interfaces_before,
        }
    }
}

struct Trials<'a> {
    instances: usize,
    size: Size,
    before: &'a Surroundings,
    gate: &'a Gate,
}

impl Trials<'_> {
    /// A service is added, and the controller dies when it has bound the service's port. The port is not lost:
    /// applying again makes it serve, and removing the service leaves nothing.
    fn listen(&self, world: &World, options: LoadOptions) -> Result<Duration, BenchError> {
        let before = settle(world)?;
        let (address, definition) = world.add_service("extra")?;
        let armed = arm(world, "listen:1")?;
        let applied = world.kiln(&["apply"]);
        let died = !world.processes("serve").contains(&armed);
        expect("the controller died after `listen`", &true, &died)?;
        if let Err(error) = applied
            && !matches!(error, WorldError::Failed { .. })
        {
            return Err(error.into());
        }
        let away = Instant::now();
        answering(world)?;
        let away = away.elapsed();
        // Until the rollout that the killed controller may have begun has ended, another one is refused.
        world.wait_until(
            "an apply of the new service",
            SETTLE_DEADLINE,
            || match world.kiln(&["apply"]) {
                Ok(_) => Ok(true),
                Err(WorldError::Failed { .. }) => Ok(false),
                Err(other) => Err(other),
            },
        )?;
        let extra = Load::start(
            LoadOptions {
                address,
                workers: 2,
                rate: 100,
                ..options
            },
            &Arc::new(Gate::new([1])),
        );
        world.wait_until("the new service's answers", SETTLE_DEADLINE, || {
            Ok(extra.requests() >= 100)
        })?;
        let tally = extra.finish();
        expect(
            format!("lost by the new service: {:?}", tally.details),
            &0,
            &tally.lost_in_all(),
        )?;
        world.put_definition(&definition)?;
        world.kiln(&["apply"])?;
        let after = settle(world)?;
        self.check(world, "listen", &before, &after)?;
        Ok(away)
    }

    /// One apply into the `nth` such effect. `None`: an apply has not so many; else how long the controller
    /// was away.
    fn controller(
        &mut self,
        world: &mut World,
        effect: &str,
        nth: u64,
    ) -> Result<Option<Duration>, BenchError> {
        let from = current(world)?;
        let before = settle(world)?;
        let armed = arm(world, &format!("{effect}:{nth}"))?;

        world.edit_environment()?;
        // A release that is not there yet has a number above all others, whichever it will be.
        let newest = before
            .instances
            .iter()
            .map(|i| i.release.0)
            .max()
            .unwrap_or(from)
            + 1;
        self.gate.allow([from, newest, newest + 1]);
        let applied = world.kiln(&["apply"]);
        let died = !world.processes("serve").contains(&armed);
        let away = Instant::now();
        match applied {
            // Cut off by the kill: the rollout goes on without its command.
            Err(WorldError::Failed { .. }) if died => {}
            other => drop(other?),
        }
        world.wait_until("another controller", RESTART_DEADLINE, || {
            Ok(!world.processes("serve").is_empty())
        })?;
        answering(world)?;
        let away = away.elapsed();
        let after = settle(world)?;
        let died = !world.processes("serve").contains(&armed);
        let to = current(world)?;
        self.gate.allow([to]);
        self.check(world, &format!("{effect}:{nth}"), &before, &after)?;
        Ok(died.then_some(away))
    }

    /// Kills the proxy; returns how long until another one ran.
    fn proxy(&mut self, world: &mut World, during_apply: bool) -> Result<Duration, BenchError> {
        let before = settle(world)?;
        let from = current(world)?;
        if !during_apply {
            let (_, back) = replace(world, "proxy")?;
            let after = settle(world)?;
            self.check(world, "proxy", &before, &after)?;
            return Ok(back);
        }
        world.edit_environment()?;
        let newest = before
            .instances
            .iter()
            .map(|i| i.release.0)
            .max()
            .unwrap_or(from)
            + 1;
        self.gate.allow([from, newest, newest + 1]);
        let world = &*world;
        let (applied, back) = std::thread::scope(|scope| {
            let apply = scope.spawn(|| world.rollout(&["apply"]));
            let back = replace(world, "proxy");
            (apply.join(), back)
        });
        match applied {
            Ok(applied) => drop(applied?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let after = settle(world)?;
        self.gate.allow([current(world)?]);
        self.check(world, "proxy during an apply", &before, &after)?;
        Ok(back?.1)
    }

    fn check(
        &self,
        world: &World,
        trial: &str,
        before: &ServiceStatus,
        after: &ServiceStatus,
    ) -> Result<(), BenchError> {
        let identity = |instance: &InstanceStatus| (instance.pid, instance.started_at.clone());
        let after_by_id: BTreeMap<_, _> = after
            .instances
            .iter()
            .map(|instance| (&instance.id, identity(instance)))
            .collect();
        let with_traffic = before.release.as_ref().map(|release| release.number);
        for instance in &before.instances {
            let found = after_by_id.get(&instance.id);
            // What had the traffic is at least kept warm; a warm set may be retired by a newer one.
            if found.is_some() || Some(instance.release) == with_traffic {
                expect(
                    format!("{trial}: instance {:?}, its pid and start", instance.id),
                    &Some(identity(instance)),
                    &found.cloned(),
                )?;
            }
        }
        expect(
            format!("{trial}: instances"),
            &self.instances,
            &after.instances.len(),
        )?;
        // Removal of a retired set may still be under way when status no longer names it.
        let reached = world.wait_until("the size before", RESTART_DEADLINE, || {
            Ok(Size::now(world, self.before) == self.size)
        });
        match reached {
            Ok(()) => Ok(()),
            Err(WorldError::Deadline { .. }) => expect(
                format!("{trial}: size on the machine"),
                &self.size,
                &Size::now(world, self.before),
            ),
            Err(other) => Err(other.into()),
        }
    }
}

/// Puts a controller in place that will die at this point; returns its pid.
fn arm(world: &World, point: &str) -> Result<u32, BenchError> {
    world.wrap("KILN_CRASH_AFTER", point)?;
    let (armed, _) = replace(world, "serve")?;
    // Its successor is to be whole again.
    world.unwrap_binary()?;
    answering(world)?;
    Ok(armed)
}

/// Kills the one process with this role; returns its successor, once it is there, and how long that took.
fn replace(world: &World, role: &str) -> Result<(u32, Duration), BenchError> {
    let old = world.processes(role);
    let begun = Instant::now();
    for pid in &old {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::KILL).map_err(|errno| {
                BenchError::World(WorldError::Io {
                    what: format!("the process with `{role}` could not be killed"),
                    source: errno.into(),
                })
            })?;
        }
    }
    let mut successor = None;
    world.wait_until(
        &format!("a successor with `{role}`"),
        RESTART_DEADLINE,
        || {
            successor = world
                .processes(role)
                .into_iter()
                .find(|pid| !old.contains(pid));
            Ok(successor.is_some())
        },
    )?;
    Ok((successor.unwrap_or_default(), begun.elapsed()))
}

/// Waits for the controller's API.
fn answering(world: &World) -> Result<(), WorldError> {
    world.wait_until(
        "the controller to answer",
        RESTART_DEADLINE,
        || match world.status() {
            Ok(_) => Ok(true),
            Err(WorldError::Interrupted) => Err(WorldError::Interrupted),
            Err(_) => Ok(false),
        },
    )
}

/// Waits until no rollout runs and every instance is ready or warm.
fn settle(world: &World) -> Result<ServiceStatus, WorldError> {
    let mut settled = None;
    world.wait_until("the rollout to end", SETTLE_DEADLINE, || {
        match world.status() {
            Ok(status) => {
                let steady = status.rollout.is_none()
                    && status.instances.iter().all(|instance| {
                        matches!(instance.state, InstanceState::Ready | InstanceState::Warm)
                    });
                if steady {
                    settled = Some(status);
                }
                Ok(steady)
            }
            // Between two controllers there is nobody to ask.
            Err(WorldError::Failed { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    })?;
    settled.ok_or(WorldError::Deadline {
        what: "the rollout to end".to_owned(),
        deadline: SETTLE_DEADLINE,
    })
}
