//! Which probes run. Derived from the services' state after each step: an instance that has started and is not
//! being stopped is probed, every other is not. So nothing about probes has to be journalled.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kiln_model::{InstanceId, ServiceKey};
use kiln_plan::{ProbeKind, ProbeWanted, Service};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::owner::Input;
use crate::prober::{self, Question};

struct Running {
    address: SocketAddr,
    question: Question,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
pub(crate) struct Probes {
    running: BTreeMap<ServiceKey, BTreeMap<(InstanceId, ProbeKind), Running>>,
}

impl Probes {
    /// Starts the probes that `service` needs and are not running, ends those that it needs no more.
    pub(crate) fn reconcile(
        &mut self,
        key: &ServiceKey,
        service: &Service,
        inputs: &mpsc::UnboundedSender<Input>,
    ) {
        let wanted: BTreeMap<_, _> = service
            .probes()
            .into_iter()
            .map(|probe| {
                let ProbeWanted {
                    instance,
                    kind,
                    endpoint,
                    http,
                    passing,
                } = probe;
                let question = http.map_or(Question::Connect, Question::Http);
                ((instance, kind), (endpoint, question, passing))
            })
            .collect();
        let running = self.running.entry(key.clone()).or_default();
        running.retain(|probe, running| {
            wanted.get(probe).is_some_and(|(address, question, _)| {
                *address == running.address && *question == running.question
            })
        });
        for ((instance, kind), (address, question, passing)) in wanted {
            let inputs = inputs.clone();
            let (service, id) = (key.clone(), instance.clone());
            running.entry((instance, kind)).or_insert_with(|| {
                let asked = question.clone();
                let task = tokio::spawn(prober::run(address, asked, passing, move |passing| {
                    let _ = inputs.send(Input::Probed {
                        service: service.clone(),
                        instance: id.clone(),
                        probe: kind,
                        passing,
                    });
                }));
                Running {
                    address,
                    question,
                    task,
                }
            });
        }
    }
}
