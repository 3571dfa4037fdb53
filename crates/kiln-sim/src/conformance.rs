//! What every engine has to do, whatever it runs instances on: one suite, passed by the simulated engine and by the local one.
//!
//! An engine that keeps sets itself ([`kiln_model::Capabilities::keeps_sets`]) takes `Scale` instead of what is asked here.

use std::time::Duration;

use kiln_model::{
    Command, ExitReason, Generation, InstanceId, Observation, Release, ReleaseNumber, SeenInstance,
    SeenState, ServiceKey,
};

/// What a release that the suite needs does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// It listens on its port until it is stopped.
    Serves,
    /// It exits at once, with code 3, after a line of output.
    Exits,
    /// Its image has no such command.
    CannotStart,
}

/// An engine under test.
pub trait Subject {
    fn release(&self, behaviour: Behaviour) -> Release;
    fn send(&mut self, command: Command);
    /// The next observation; `None`: there is none for longer than any command takes.
    fn next(&mut self) -> Option<Observation>;
}

struct Suite<'a> {
    subject: &'a mut dyn Subject,
    service: ServiceKey,
    generation: u64,
}

/// Runs the suite: the first thing that the engine does otherwise.
pub fn check_engine(subject: &mut dyn Subject) -> Result<(), String> {
    let service = ServiceKey::try_from("dev/api".to_owned()).map_err(|error| error.to_string())?;
    let mut suite = Suite {
        subject,
        service,
        generation: 0,
    };
    suite.lives_and_is_stopped()?;
    suite.is_removed_while_it_runs()?;
    suite.ends_by_itself()?;
    suite.cannot_start()?;
    suite.what_is_not_there()
}

const GRACE: Duration = Duration::from_secs(2);

impl Suite<'_> {
    fn start(&mut self, instance: &InstanceId, behaviour: Behaviour) -> Command {
        self.generation += 1;
        Command::Start {
            instance: instance.clone(),
            generation: Generation(self.generation),
            service: self.service.clone(),
            number: ReleaseNumber(1),
            release: Box::new(self.subject.release(behaviour)),
        }
    }

    fn stop(&mut self, instance: &InstanceId) -> Command {
        self.generation += 1;
        Command::Stop {
            instance: instance.clone(),
            generation: Generation(self.generation),
            grace: GRACE,
        }
    }

    fn remove(&mut self, instance: &InstanceId) -> Command {
        self.generation += 1;
        Command::Remove {
            instance: instance.clone(),
            generation: Generation(self.generation),
        }
    }

    /// Gives a command and waits for an observation that `is` one. Others that are said before it are passed over.
    fn ask<T>(
        &mut self,
        what: &str,
        command: Command,
        is: impl Fn(&Observation) -> Option<T>,
    ) -> Result<T, String> {
        self.subject.send(command);
        self.wait(what, is)
    }

    fn wait<T>(&mut self, what: &str, is: impl Fn(&Observation) -> Option<T>) -> Result<T, String> {
        let mut passed = Vec::new();
        while let Some(observation) = self.subject.next() {
            if let Some(found) = is(&observation) {
                return Ok(found);
            }
            passed.push(observation);
        }
        Err(format!(
            "{what}: never said; what was said instead: {passed:?}"
        ))
    }

    fn synced(&mut self) -> Result<Vec<SeenInstance>, String> {
        self.ask("what there is", Command::Sync, |said| match said {
            Observation::Synced { instances } => Some(instances.clone()),
            _ => None,
        })
    }

    fn seen(&mut self, instance: &InstanceId) -> Result<Option<SeenState>, String> {
        let seen = self.synced()?;
        let found = seen.into_iter().find(|seen| seen.instance == *instance);
        Ok(found.map(|seen| seen.state))
    }

    fn lives_and_is_stopped(&mut self) -> Result<(), String> {
        let id = InstanceId::new("api-dev-1-1");
        let start = self.start(&id, Behaviour::Serves);
        let endpoint = self.ask("a start", start.clone(), |said| started(said, &id))?;
        holds(
            endpoint.is_some(),
            "an instance with a port has an endpoint",
        )?;
        let again = self.ask("the same start again", start.clone(), |said| {
            started(said, &id)
        })?;
        holds(
            again == endpoint,
            "the same start again gives the same endpoint",
        )?;
        let seen = self.seen(&id)?;
        holds(
            seen == Some(SeenState::Running),
            &format!("it runs, and is seen as {seen:?}"),
        )?;
        let stop = self.stop(&id);
        self.ask("a stop", stop.clone(), |said| exited(said, &id))?;
        self.ask("the same stop again", stop, |said| exited(said, &id))?;
        let seen = self.seen(&id)?;
        let ended = matches!(seen, Some(SeenState::Ended(_)));
        holds(ended, &format!("it has ended, and is seen as {seen:?}"))?;
        // What has ended is never started again: the controller starts another.
        self.ask("a start of what has ended", start, |said| {
            start_failed(said, &id)
        })?;
        self.is_gone_when_removed(&id)
    }

    fn is_gone_when_removed(&mut self, id: &InstanceId) -> Result<(), String> {
        let remove = self.remove(id);
        self.ask("a removal", remove.clone(), |said| removed(said, id))?;
        let seen = self.seen(id)?;
        holds(
            seen.is_none(),
            &format!("it is removed, and seen as {seen:?}"),
        )?;
        self.ask("the same removal again", remove, |said| removed(said, id))
    }

    fn is_removed_while_it_runs(&mut self) -> Result<(), String> {
        let id = InstanceId::new("api-dev-1-2");
        let start = self.start(&id, Behaviour::Serves);
        self.ask("a start", start, |said| started(said, &id))?;
        self.is_gone_when_removed(&id)
    }

    fn ends_by_itself(&mut self) -> Result<(), String> {
        let id = InstanceId::new("api-dev-1-3");
        let start = self.start(&id, Behaviour::Exits);
        self.ask("a start", start, |said| started(said, &id))?;
        let record = self.wait("its end", |said| match said {
            Observation::Exited { instance, record } if *instance == id => Some(record.clone()),
            _ => None,
        })?;
        let reason = &record.reason;
        let right = *reason == ExitReason::Exited { code: 3 };
        holds(
            right,
            &format!("it exited with code 3, and the reason is {reason:?}"),
        )?;
        holds(!record.last_lines.is_empty(), "its last lines are told")?;
        self.is_gone_when_removed(&id)
    }

    fn cannot_start(&mut self) -> Result<(), String> {
        let id = InstanceId::new("api-dev-1-4");
        let start = self.start(&id, Behaviour::CannotStart);
        let permanent = self.ask("a failed start", start, |said| start_failed(said, &id))?;
        holds(permanent, "an image without the command fails for good")?;
        self.is_gone_when_removed(&id)
    }

    /// A controller that was killed gives its last commands again, whatever became of them.
    fn what_is_not_there(&mut self) -> Result<(), String> {
        let id = InstanceId::new("api-dev-1-5");
        let stop = self.stop(&id);
        self.ask("a stop of nothing", stop, |said| exited(said, &id))?;
        let remove = self.remove(&id);
        self.ask("a removal of nothing", remove, |said| removed(said, &id))?;
        let seen = self.synced()?;
        holds(
            seen.is_empty(),
            &format!("nothing is left, and {seen:?} is seen"),
        )
    }
}

fn holds(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn started(said: &Observation, id: &InstanceId) -> Option<Option<std::net::SocketAddr>> {
    match said {
        Observation::Started {
            instance, endpoint, ..
        } if instance == id => Some(*endpoint),
        _ => None,
    }
}

fn exited(said: &Observation, id: &InstanceId) -> Option<()> {
    matches!(said, Observation::Exited { instance, .. } if instance == id).then_some(())
}

fn removed(said: &Observation, id: &InstanceId) -> Option<()> {
    matches!(said, Observation::Removed { instance } if instance == id).then_some(())
}

/// Whether it failed for good.
fn start_failed(said: &Observation, id: &InstanceId) -> Option<bool> {
    match said {
        Observation::StartFailed { instance, failure } if instance == id => {
            Some(failure.is_permanent())
        }
        _ => None,
    }
}
