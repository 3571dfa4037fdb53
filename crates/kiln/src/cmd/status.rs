//! `kiln status`: what runs.

use kiln_model::api::{InstanceState, ServiceStatus, Status};

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::{args, output, rollout, settings, start, table};

pub(crate) fn run(args: args::Status) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let client = Client::new(&root);
    let path = match args.env {
        Some(name) => format!("/v1/status?environment={name}"),
        None => "/v1/status".to_owned(),
    };
    let mut status: Status = client.get(&path)?;
    // Its absence is seen by nobody until something ends, and then it is too late.
    if !start::is_supervised(&root)? {
        status.problems.push(
            "no supervisor runs: nothing is started again when it ends, and no address can be listened on; `kiln up` starts one"
                .to_owned(),
        );
    }
    if args.json.json {
        output::json(&status)?;
        return Ok(Exit::Done);
    }
    for problem in &status.problems {
        output::warning(problem);
    }
    if status.services.is_empty() {
        output::line("nothing runs: `kiln apply` starts what a definition says")?;
    }
    let services: Vec<String> = status.services.iter().map(service).collect();
    if !services.is_empty() {
        output::line(&services.join("\n\n"))?;
    }
    Ok(Exit::Done)
}

fn service(status: &ServiceStatus) -> String {
    let ServiceStatus {
        name,
        environment,
        project,
        url,
        release,
        instances,
        rollout,
        warm,
        last_rollout,
    } = status;
    let mut head = match release {
        Some(release) => format!("{environment}/{name}@{}  {}", release.number, release.tag),
        None => format!("{environment}/{name}  no release yet"),
    };
    if let Some(url) = url {
        head.push_str(&format!("  {url}"));
    }
    head.push_str(&format!("  (project {project})"));
    let mut lines = vec![head];
    if let Some(rollout) = rollout {
        let from = rollout
            .from
            .map_or_else(|| "nothing".to_owned(), |from| format!("{name}@{from}"));
        lines.push(format!(
            "  rollout {from} → {name}@{}: {}: {}",
            rollout.to, rollout.phase, rollout.waits_on
        ));
    }
    if let Some(last) = last_rollout
        && let Some(reason) = &last.reason
        && rollout.is_none()
    {
        let first = reason.lines().next().unwrap_or_default();
        lines.push(format!(
            "  the last rollout, to {name}@{}, did not end as asked: {first}",
            last.to
        ));
    }
    if let Some(warm) = warm {
        let left = table::duration(warm.until.since(rollout::now()));
        lines.push(format!("  {name}@{} is kept warm for {left}", warm.number));
    }
    let mut rows = vec![
        [
            "  INSTANCE",
            "RELEASE",
            "STATE",
            "ADDRESS",
            "PID",
            "STARTED",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for instance in instances {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            format!("  {}", instance.id),
            format!("{name}@{}", instance.release),
            state(instance.state).to_owned(),
            or_dash(instance.address.map(|address| address.to_string())),
            or_dash(instance.pid.map(|pid| pid.to_string())),
            or_dash(instance.started_at.clone()),
        ]);
    }
    if instances.is_empty() {
        lines.push("  no instance".to_owned());
    } else {
        lines.push(table::columns(&rows));
    }
    lines.join("\n")
}

fn state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Unready => "unready",
        InstanceState::Ready => "ready",
        InstanceState::Ejected => "ejected",
        InstanceState::Warm => "warm",
        InstanceState::Draining => "draining",
        InstanceState::Stopping => "stopping",
        InstanceState::Failed => "failed",
    }
}
