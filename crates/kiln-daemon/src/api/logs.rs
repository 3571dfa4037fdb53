//! The logs of a service: the last lines of its instances in the order they were said, and what they say from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_engine::{Engine, logs};
use kiln_model::api::LogLine;
use kiln_model::{InstanceId, ServiceKey, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::http::Lines;
use crate::owner::{Call, Input};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) struct Request {
    pub(crate) service: ServiceKey,
    /// One instance by name; `None`: all, those of later releases included while it is followed.
    pub(crate) instance: Option<InstanceId>,
    pub(crate) instances: Vec<InstanceId>,
    pub(crate) count: usize,
    pub(crate) follow: bool,
}

/// Tells until the end of the files, or, following, until nobody listens.
pub(crate) async fn tell(
    engine: Engine,
    request: Request,
    lines: Lines,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let Request {
        service,
        instance: only,
        mut instances,
        count,
        follow,
    } = request;
    let mut readers: BTreeMap<InstanceId, logs::Reader> = BTreeMap::new();
    let mut tail = count;
    loop {
        let mut said = Vec::new();
        for instance in &instances {
            let new = match readers.get_mut(instance) {
                Some(reader) => reader.read_new(),
                None => {
                    logs::Reader::tail(&engine.log_path(instance), tail).map(|(last, reader)| {
                        readers.insert(instance.clone(), reader);
                        last
                    })
                }
            };
            // A file that can't be read has nothing to tell; the others have.
            said.extend(new.unwrap_or_default().into_iter().map(|line| LogLine {
                instance: instance.clone(),
                at: Timestamp(line.at),
                stream: if line.stderr { "stderr" } else { "stdout" }.to_owned(),
                line: line.text,
            }));
        }
        said.sort_by_key(|line| line.at);
        let from = if tail == usize::MAX {
            0
        } else {
            said.len().saturating_sub(tail)
        };
        for line in &said[from..] {
            if !lines.send(line) {
                return;
            }
        }
        if !follow || lines.is_closed() {
            return;
        }
        // An instance that starts later is told from its first line.
        tail = usize::MAX;
        tokio::time::sleep(LOOK_EVERY).await;
        if only.is_none() {
            let (reply, answer) = oneshot::channel();
            let call = Call::Instances {
                service: service.clone(),
                reply,
            };
            if inputs.send(Input::Call(call)).is_err() {
                return;
            }
            let present = answer.await.unwrap_or_default();
            readers.retain(|id, _| present.contains(id) || instances.contains(id));
            instances = present;
        }
    }
}
