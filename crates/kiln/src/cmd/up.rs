//! `kiln up`: from a definition to services that answer, with nothing started before.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_model::api::LogLine;
use kiln_model::{EnvName, ServiceName};

use crate::baking::{self, Baking};
use crate::client::{Client, Lines, Next};
use crate::failure::{Exit, Failure};
use crate::output::{self, Audience};
use crate::settings::DefinitionSettings;
use crate::{args, definition, rollout, settings, start};

/// How long each service's log is waited on before the next one's turn, and before Ctrl-C is seen.
const TURN: Duration = Duration::from_millis(50);

pub(crate) fn run(args: args::Up) -> Result<Exit, Failure> {
    let args::Up {
        path,
        detach,
        environment,
        variables,
        root,
    } = args;
    settings::need_root("`kiln up`")?;
    let root = settings::root(root)?;
    let definition = definition::read(DefinitionSettings::new(&path, environment.env, variables))?;
    // A folder that can't be written is found here, before minutes of baking.
    let baked = Baking::new(&root, &definition, Audience::Person)?.used()?;
    let spec = baking::environment(&definition.spec, &baked);

    let interrupted = Arc::new(AtomicBool::new(false));
    if !detach {
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(Failure::Signals)?;
        }
    }
    let client = Client::new(&root);
    let ours = start::ensure(&root, &client)?;
    if !ours {
        output::line(&format!("kiln runs on {} already", root.display()))?;
    }
    let applied = rollout::plan(&client, &spec)
        .and_then(|plan| client.post_lines("/v1/apply", &plan))
        .and_then(|lines| rollout::follow(lines, Audience::Person));
    let exit = match applied {
        Ok(outcomes) => rollout::report(&outcomes, Audience::Person)?,
        Err(failure) => {
            if ours {
                undo(&root, &client)?;
            }
            return Err(failure);
        }
    };
    if detach || exit != Exit::Done {
        return Ok(exit);
    }
    if ours {
        output::line("following the logs; Ctrl-C ends everything")?;
    } else {
        output::line("following the logs; Ctrl-C leaves everything running")?;
    }
    let names: Vec<ServiceName> = spec.services.keys().cloned().collect();
    follow(&client, &spec.environment, &names, &interrupted)?;
    if ours {
        output::line("stopping")?;
        start::end(&root, &client)?;
    }
    Ok(Exit::Done)
}

/// What this command has just started serves nothing when its first apply was refused. Services of an earlier
/// time on this root are left alone.
fn undo(root: &Path, client: &Client) -> Result<(), Failure> {
    let status: kiln_model::api::Status = client.get("/v1/status")?;
    if status.services.is_empty() {
        start::end(root, client)?;
    }
    Ok(())
}

fn follow(
    client: &Client,
    environment: &EnvName,
    services: &[ServiceName],
    interrupted: &AtomicBool,
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
    while !interrupted.load(Ordering::Relaxed) {
        let mut silent = true;
        for (service, lines) in &mut logs {
            match lines.as_mut().map(|lines| lines.next::<LogLine>(TURN)) {
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
            std::thread::sleep(TURN);
        }
    }
    Ok(())
}
