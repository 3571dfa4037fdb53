//! `GET /v1/logs`: the last lines of a service's instances in the order they were said, and what they say from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use kiln_engine::Engine;
use kiln_engine::logs::{Batch, Reader};
use kiln_model::api::{ErrorCode, LogLine};
use kiln_model::{EnvName, InstanceId, ServiceKey, ServiceName, Timestamp};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Api;
use super::error::Refused;
use super::extract::Query;
use super::stream::{SendError, Sender, stream};
use crate::owner::Call;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of all logs together that are in memory at once, and at least so many of each.
const READ_AT_ONCE: usize = 2 << 20;
const READ_LEAST: usize = 64 << 10;
/// How long a reader that follows may take nothing before lines are left out.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
pub(super) struct Wanted {
    environment: EnvName,
    service: ServiceName,
    /// One instance by name; `None`: all, those of later releases included while it is followed.
    instance: Option<InstanceId>,
    #[serde(default = "last_lines")]
    lines: usize,
    #[serde(default)]
    follow: bool,
}

fn last_lines() -> usize {
    100
}

pub(super) async fn logs(
    State(api): State<Api>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refused> {
    let Wanted {
        environment,
        service,
        instance,
        lines,
        follow,
    } = wanted;
    let service = ServiceKey {
        environment,
        service,
    };
    let mut instances = present(&api, &service).await?;
    if let Some(id) = instance.clone() {
        if !id.is_of(&service) {
            return Err(Refused::new(
                ErrorCode::NotFound,
                format!("`{id}` is no instance of `{service}`: `kiln status` lists its instances"),
            ));
        }
        instances = vec![id];
    }
    let permit = api.admit()?;
    let (sender, answer) = stream();
    let reading = Reading {
        api,
        service,
        only_one: instance.is_some(),
        follow,
        permit,
    };
    tokio::spawn(tell(reading, instances, lines, sender));
    Ok(answer)
}

/// The service's instances at present.
async fn present(api: &Api, service: &ServiceKey) -> Result<Vec<InstanceId>, Refused> {
    let service = service.clone();
    Ok(api
        .ask(|reply| Call::Instances { service, reply })
        .await??)
}

struct Reading {
    api: Api,
    service: ServiceKey,
    only_one: bool,
    follow: bool,
    permit: OwnedSemaphorePermit,
}

/// Until the end of the files, or, following, until nobody listens.
async fn tell(reading: Reading, mut instances: Vec<InstanceId>, count: usize, sender: Sender) {
    let Reading {
        api,
        service,
        only_one,
        follow,
        permit: _permit,
    } = reading;
    let mut files = Files::default();
    let mut reader = LineReader {
        sender,
        left_out: BTreeMap::new(),
    };
    let mut tail = count;
    loop {
        let engine = api.engine.clone();
        // Files are read on a thread where that holds nobody up.
        let read = tokio::task::spawn_blocking(move || {
            let said = files.read(&engine, &instances, tail);
            (files, instances, said)
        });
        let Ok((read_files, read_instances, Said { lines, more })) = read.await else {
            return;
        };
        (files, instances) = (read_files, read_instances);
        if reader.tell(lines, follow).await == Err(SendError::Gone) || !follow {
            return;
        }
        // An instance that starts later is told from its first line.
        tail = usize::MAX;
        if more {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = reader.sender.closed() => return,
        }
        if !only_one {
            let Ok(present) = present(&api, &service).await else {
                return;
            };
            // What an instance said last is read once more after it is gone.
            files
                .0
                .retain(|id, _| present.contains(id) || instances.contains(id));
            instances = present;
        }
    }
}

/// What has been read of each instance's log.
#[derive(Default)]
struct Files(BTreeMap<InstanceId, Reader>);

/// What was read at once.
struct Said {
    lines: Vec<LogLine>,
    /// There may be more already.
    more: bool,
}

impl Files {
    /// What is new, in the order it was said; of a log that is read for the first time, and of all together, the last `tail`
    /// lines.
    fn read(&mut self, engine: &Engine, instances: &[InstanceId], tail: usize) -> Said {
        let limit = (READ_AT_ONCE / instances.len().max(1)).max(READ_LEAST);
        let mut said = Said {
            lines: Vec::new(),
            more: false,
        };
        for instance in instances {
            let new = match self.0.get_mut(instance) {
                Some(reader) => reader.read_some(limit),
                None => Reader::tail(&engine.log_path(instance), tail).map(|(lines, reader)| {
                    self.0.insert(instance.clone(), reader);
                    Batch { lines, more: false }
                }),
            };
            // A file that can't be read has nothing to tell; the others have.
            let Ok(Batch { lines, more }) = new else {
                continue;
            };
            said.more |= more;
            said.lines.extend(lines.into_iter().map(|line| LogLine {
                instance: instance.clone(),
                at: Timestamp(line.at),
                stream: if line.stderr { "stderr" } else { "stdout" }.to_owned(),
                line: line.text,
                left_out: None,
            }));
        }
        said.lines.sort_by_key(|line| line.at);
        if tail != usize::MAX {
            let count = said.lines.len();
            said.lines.drain(..count.saturating_sub(tail));
        }
        said
    }
}

/// Whoever reads the lines.
struct LineReader {
    sender: Sender,
    /// Since it fell behind: how many lines of each instance were left out, and when the last was said.
    left_out: BTreeMap<InstanceId, (u64, Timestamp)>,
}

impl LineReader {
    /// Hands the lines on. A reader that follows is waited for only for a while, so that what waits for it stays bounded;
    /// what it misses is told when it reads again.
    async fn tell(&mut self, said: Vec<LogLine>, follow: bool) -> Result<(), SendError> {
        let patience = if self.left_out.is_empty() {
            PATIENCE
        } else {
            Duration::ZERO
        };
        let deadline = follow.then(|| Instant::now() + patience);
        let mut lines = said.into_iter();
        if !self.left_out.is_empty() {
            match self.sender.flush(deadline).await {
                Ok(()) => self.tell_left_out().await?,
                Err(SendError::Slow) => {}
                Err(SendError::Gone) => return Err(SendError::Gone),
            }
        }
        if self.left_out.is_empty() {
            for line in lines.by_ref() {
                match self.sender.send(&line, deadline).await {
                    Ok(()) => {}
                    Err(SendError::Gone) => return Err(SendError::Gone),
                    Err(SendError::Slow) => {
                        self.leave_out(line);
                        break;
                    }
                }
            }
        }
        lines.for_each(|line| self.leave_out(line));
        match self.sender.flush(deadline).await {
            // What was added stays for the next time.
            Ok(()) | Err(SendError::Slow) if follow => {
                if self.sender.is_closed() {
                    Err(SendError::Gone)
                } else {
                    Ok(())
                }
            }
            flushed => flushed,
        }
    }

    fn leave_out(&mut self, line: LogLine) {
        let LogLine { instance, at, .. } = line;
        let (count, last) = self.left_out.entry(instance).or_insert((0, at));
        *count += 1;
        *last = at;
    }

    /// There is room again.
    async fn tell_left_out(&mut self) -> Result<(), SendError> {
        for (instance, (count, at)) in std::mem::take(&mut self.left_out) {
            let mark = LogLine {
                instance,
                at,
                stream: "kiln".to_owned(),
                line: format!("{count} lines were left out up to here: they were not read in time"),
                left_out: Some(count),
            };
            // The piece that is being filled was just handed on: there is room for a few marks.
            self.sender.send(&mark, None).await?;
        }
        Ok(())
    }
}
