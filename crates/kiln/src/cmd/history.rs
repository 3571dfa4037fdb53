//! `kiln history`: which releases there were, and what happened; or whether the journal is as it was written.

use kiln_model::api::History;
use kiln_model::{Actor, StateId, Subject};
use serde::Serialize;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::{args, output, settings, table};

#[derive(Serialize)]
struct Verified {
    /// The last entry.
    last: StateId,
}

/// Has the journal's chain of hashes read from its beginning to its end.
pub(crate) fn verify(client: &Client) -> Result<StateId, Failure> {
    client.get_slow("/v1/verify")
}

pub(crate) fn run(args: args::History) -> Result<Exit, Failure> {
    let args::History {
        service,
        env,
        verify: is_verified,
        root,
        json,
    } = args;
    let client = Client::new(&settings::root(root)?);
    if is_verified {
        let last = verify(&client)?;
        if json.json {
            output::json(&Verified { last })?;
        } else {
            output::line(&format!(
                "the journal is as it was written: every entry up to {last} follows from the one before it"
            ))?;
        }
        return Ok(Exit::Done);
    }
    let mut query = Vec::new();
    if let Some(name) = env {
        query.push(format!("environment={name}"));
    }
    if let Some(name) = service {
        query.push(format!("service={name}"));
    }
    let history: History = client.get_slow(&format!("/v1/history?{}", query.join("&")))?;
    if json.json {
        output::json(&history)?;
        return Ok(Exit::Done);
    }
    let History { releases, events } = history;
    if releases.is_empty() && events.is_empty() {
        output::line("nothing has happened yet")?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        ["RELEASE", "IMAGE", "CREATED", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for release in releases {
        rows.push(vec![
            format!(
                "{}/{}@{}",
                release.environment, release.service, release.number
            ),
            release.tag,
            release.created_at,
            if release.current {
                "current".to_owned()
            } else {
                String::new()
            },
        ]);
    }
    output::line(&table::columns(&rows))?;
    let mut rows = vec![["AT", "SUBJECT", "BY", "WHAT"].map(str::to_owned).to_vec()];
    for event in events {
        rows.push(vec![
            event.at,
            match event.subject {
                Subject::Service(key) => key.to_string(),
                other => other.to_string(),
            },
            match event.actor {
                None => "kiln".to_owned(),
                Some(Actor::Uid(uid)) => format!("uid {uid}"),
                Some(other) => other.to_string(),
            },
            event.text,
        ]);
    }
    output::line(&format!("\n{}", table::columns(&rows)))?;
    Ok(Exit::Done)
}
