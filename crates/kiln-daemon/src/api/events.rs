//! `GET /v1/events`: the journal's entries by number, and each further one as it is written.

use axum::extract::State;
use axum::response::Response;
use kiln_model::{EnvName, ServiceName, StateId};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::error::Refused;
use super::extract::Query;
use super::stream::{SendError, Sender, stream};
use crate::journal::{Filter, Recorded};

/// Entries that are read at once.
const BATCH: usize = 100;
/// Entries that an answer has where no limit is given and it does not follow.
const LIMIT: usize = 1000;

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    after: StateId,
    environment: Option<EnvName>,
    service: Option<ServiceName>,
    kind: Option<String>,
    #[serde(default)]
    follow: bool,
    limit: Option<usize>,
}

pub(super) async fn events(
    State(api): State<Api>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refused> {
    let Wanted {
        after,
        environment,
        service,
        kind,
        follow,
        limit,
    } = wanted;
    let filter = Filter {
        environment,
        service,
        kind,
    };
    let left = limit.unwrap_or(if follow { usize::MAX } else { LIMIT });
    // What can't be read at all is an error, and no stream.
    let first = read(&api, after, &filter, left).await?;
    let permit = api.admit()?;
    let (sender, answer) = stream();
    let reading = Reading {
        api,
        filter,
        after,
        left,
        follow,
        _permit: permit,
    };
    tokio::spawn(tell(reading, first, sender));
    Ok(answer)
}

struct Reading {
    api: Api,
    filter: Filter,
    /// The last entry that was read.
    after: StateId,
    left: usize,
    follow: bool,
    _permit: OwnedSemaphorePermit,
}

async fn read(
    api: &Api,
    after: StateId,
    filter: &Filter,
    left: usize,
) -> Result<Vec<Recorded<Value>>, Refused> {
    let filter = filter.clone();
    api.read(move |journal| journal.after::<Value>(after, &filter, BATCH.min(left)))
        .await
}

/// Waits for a reader for as long as it takes: what it did not read yet stays on the disk.
async fn tell(mut reading: Reading, first: Vec<Recorded<Value>>, mut sender: Sender) {
    let mut written = reading.api.reader.written();
    let mut batch = first;
    loop {
        for recorded in &batch {
            reading.after = recorded.state;
            reading.left = reading.left.saturating_sub(1);
            if sender.send(recorded, None).await.is_err() {
                return;
            }
        }
        if sender.flush(None).await == Err(SendError::Gone) || reading.left == 0 {
            return;
        }
        if batch.len() < BATCH {
            if !reading.follow {
                return;
            }
            tokio::select! {
                changed = written.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
        let Reading {
            api,
            filter,
            after,
            left,
            follow: _,
            _permit: _,
        } = &reading;
        match read(api, *after, filter, *left).await {
            Ok(more) => batch = more,
            // The stream breaks off; whoever reads it asks again after the last number that it has, and hears why.
            Err(_) => return,
        }
    }
}
