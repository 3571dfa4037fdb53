//! `kiln up`: from a definition to services that answer, with nothing started before.

use std::path::Path;

use kiln_model::api::{ApiError, ErrorCode, LogLine, Outcome, Status};
use kiln_model::{EnvName, EnvironmentSpec, ServiceName};

use crate::baking::{self, Baking};
use crate::client::{Client, Lines, Next};
use crate::failure::{Exit, Failure};
use crate::interrupt::{self, Interrupts};
use crate::output::{self, Audience};
use crate::settings::DefinitionSettings;
use crate::start::Started;
use crate::{args, definition, readiness, rollout, settings, start};

use super::history;

pub(crate) fn run(args: args::Up) -> Result<Exit, Failure> {
    let args::Up {
        path,
        detach,
        environment,
        variables,
        root,
    } = args;
    settings::need_root("`kiln up`")?;
    // What this machine lacks is told before minutes of baking, and so is a root that can't be written.
    kiln_engine::Engine::check()?;
    let root = settings::root(root)?;
    let definition = definition::read(DefinitionSettings::new(&path, environment.env, variables))?
        .for_running()?;
    let client = Client::new(&root);
    let interrupts = Interrupts::catch()?;
    let left = || start::left(&root, &client);
    let baking = Baking::new(&root, &definition, Audience::Person)?;
    let baked = interrupts.during(|| baking.used(), left)?;
    let spec = baking::environment(&definition.spec, &baked);

    let started = start::ensure(&root, &client)?;
    let ours = started == Started::Now;
    match started {
        Started::Now => {}
        Started::Before => output::line(&format!("kiln runs on {} already", root.display()))?,
        Started::Supervised => output::line(&format!(
            "kiln ran on {} without its supervisor, which is started again",
            root.display()
        ))?,
    }
    let applied = interrupts
        .check(|| "nothing was applied".to_owned())
        .and_then(|()| apply(&client, &spec, &interrupts));
    let exit = match applied {
        Ok(outcomes) => rollout::report(&outcomes, Audience::Person)?,
        Err(failure) => {
            if ours {
                undo(&root, &client, &interrupts)?;
            }
            return Err(failure);
        }
    };
    if exit != Exit::Done {
        return Ok(exit);
    }
    readiness::wait(&client, &spec, &interrupts)?;
    if started != Started::Before {
        check_journal(&client)?;
    }
    if detach {
        return Ok(exit);
    }
    if ours {
        output::line("following the logs; Ctrl-C ends everything")?;
    } else {
        output::line("following the logs; Ctrl-C leaves everything running")?;
    }
    let names: Vec<ServiceName> = spec.services.keys().cloned().collect();
    follow(&client, &spec.environment, &names, &interrupts)?;
    if ours {
        interrupts.heed();
        output::line("stopping")?;
        start::end(&root, &client, &interrupts)?;
    }
    Ok(Exit::Done)
}

/// A journal that was changed while nobody had it open is told of. It stops nothing: what runs is by its state, and
/// traffic matters more than history.
fn check_journal(client: &Client) -> Result<(), Failure> {
    match history::verify(client) {
        Ok(_) => Ok(()),
        Err(Failure::Api(error)) => {
            output::warning(&format!(
                "{}: `kiln history --verify` looks again",
                error.message
            ));
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// Two `kiln up` at once both get what they ask: this one waits for a rollout that another command began, and
/// decides anew when something changed meanwhile.
fn apply(
    client: &Client,
    spec: &EnvironmentSpec,
    interrupts: &Interrupts,
) -> Result<Vec<Outcome>, Failure> {
    let mut told = false;
    loop {
        if let Some(rollout) = running(client, spec)? {
            if !told {
                output::line(&format!("waiting for another command's rollout: {rollout}"))?;
                told = true;
            }
            std::thread::sleep(interrupt::TURN);
        } else {
            let applied = rollout::plan(client, spec)
                .and_then(|plan| client.post_lines("/v1/apply", &plan))
                .and_then(|lines| rollout::follow(client, lines, Audience::Person, interrupts));
            match applied {
                // Another command was quicker.
                Err(Failure::Api(ApiError {
                    code: ErrorCode::StalePlan | ErrorCode::Busy,
                    ..
                })) => {}
                other => return other,
            }
        }
        interrupts.check(|| {
            "nothing was applied; `kiln status` shows what runs, `kiln down` ends everything"
                .to_owned()
        })?;
    }
}

/// A rollout of one of these services, for a person.
fn running(client: &Client, spec: &EnvironmentSpec) -> Result<Option<String>, Failure> {
    let status: Status = client.get(&format!("/v1/status?environment={}", spec.environment))?;
    Ok(status
        .services
        .iter()
        .filter(|service| spec.services.contains_key(&service.name))
        .find_map(|service| {
            let rollout = service.rollout.as_ref()?;
            let number = rollout.to;
            Some(format!(
                "{}@{number}: {}: {}",
                service.name, rollout.phase, rollout.waits_on
            ))
        }))
}

/// What this command has just started serves nothing when its first apply was refused. Services of an earlier
/// time on this root are left alone.
fn undo(root: &Path, client: &Client, interrupts: &Interrupts) -> Result<(), Failure> {
    let status: Status = client.get("/v1/status")?;
    if status.services.is_empty() {
        interrupts.heed();
        start::end(root, client, interrupts)?;
    }
    Ok(())
}

fn follow(
    client: &Client,
    environment: &EnvName,
    services: &[ServiceName],
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    let open = |service: &ServiceName, lines: u32| {
        client.get_lines(&format!(
            "/v1/logs?environment={environment}&service={service}&lines={lines}&follow=true"
        ))
    };
    let mut logs: Vec<(ServiceName, Option<Lines>)> = services
        .iter()
        .map(|service| Ok((service.clone(), Some(open(service, 20)?))))
        .collect::<Result<_, Failure>>()?;
    while !interrupts.came() {
        let mut silent = true;
        for (service, lines) in &mut logs {
            match lines
                .as_mut()
                .map(|lines| lines.next::<LogLine>(interrupt::TURN))
            {
                Some(Ok(Next::Line(line))) => {
                    silent = false;
                    output::line(&super::logs::text(&line))?;
                }
                Some(Ok(Next::Silence)) => {}
                // The controller was killed and is started again, or the service was removed.
                Some(Ok(Next::End) | Err(_)) => *lines = None,
                None => {
                    *lines = open(service, 0).ok();
                }
            }
        }
        if silent {
            std::thread::sleep(interrupt::TURN);
        }
    }
    Ok(())
}
