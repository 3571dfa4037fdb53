//! The listening descriptors: fetched from the supervisor by name, and given to the workers to accept on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_model::RoutingTable;
use kiln_supervise::handoff::{Client, HandoffError, SocketName};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::workers::ToWorker;
use super::workers::Workers;

/// What is accepted on when this table is served.
pub(super) fn sockets_of(table: &RoutingTable) -> BTreeSet<SocketName> {
    let outside = table.routes.iter().filter_map(|route| route.listen);
    let mut names: BTreeSet<_> = outside.map(SocketName::Address).collect();
    if table.routes.iter().any(|route| route.inside.is_some()) {
        names.extend(SocketName::INSIDE);
    }
    names
}

fn is_for_names(name: SocketName) -> bool {
    match name {
        SocketName::Address(_) | SocketName::Services => false,
        SocketName::NamesUdp | SocketName::NamesTcp | SocketName::ClosedNamesUdp => true,
    }
}

pub(super) struct Listening {
    /// `None`: it went away. The next one connects by itself.
    supervisor: Option<Client>,
    descriptors: BTreeMap<SocketName, Arc<OwnedFd>>,
    /// What is accepted on.
    accepting: BTreeSet<SocketName>,
}

impl Listening {
    pub(super) fn new(supervisor: Client) -> Self {
        Self {
            supervisor: Some(supervisor),
            descriptors: BTreeMap::new(),
            accepting: BTreeSet::new(),
        }
    }

    pub(super) fn has(&self, name: SocketName) -> bool {
        self.descriptors.contains_key(&name)
    }

    pub(super) fn has_supervisor(&self) -> bool {
        self.supervisor.is_some()
    }

    pub(super) fn accepts_on(&self) -> &BTreeSet<SocketName> {
        &self.accepting
    }

    /// Gets those that are not here and that the supervisor has. What it does not have yet is asked for again later.
    pub(super) fn fetch(&mut self, wanted: &BTreeSet<SocketName>) {
        for name in wanted {
            let Some(supervisor) = &mut self.supervisor else {
                return;
            };
            if self.descriptors.contains_key(name) {
                continue;
            }
            match supervisor.fetch(&name.to_string()) {
                Ok(Some(descriptor)) => {
                    self.descriptors.insert(*name, Arc::new(descriptor));
                }
                Ok(None) => {}
                Err(_) => self.supervisor = None,
            }
        }
    }

    /// The addresses of all sockets that the supervisor keeps for services.
    pub(super) fn addresses(&mut self) -> BTreeSet<SocketName> {
        let names = self.supervisor.as_mut().map(Client::names);
        if let Some(Err(_)) = names {
            self.supervisor = None;
        }
        names
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|name| SocketName::parse(&name))
            .filter(|name| matches!(name, SocketName::Address(_)))
            .collect()
    }

    pub(super) fn retain(&mut self, wanted: &BTreeSet<SocketName>) {
        self.descriptors.retain(|name, _| wanted.contains(name));
    }

    pub(super) fn clear(&mut self) {
        self.descriptors.clear();
        self.accepting.clear();
    }

    /// Tells the workers what to accept on, if that changed, and waits until they do.
    pub(super) async fn accept(&mut self, workers: &Workers) -> io::Result<()> {
        let wanted: BTreeSet<SocketName> = self.descriptors.keys().copied().collect();
        if wanted == self.accepting {
            return Ok(());
        }
        let listeners = self
            .descriptors
            .iter()
            .map(|(name, descriptor)| (*name, Arc::clone(descriptor)));
        let (inside, outside): (Vec<_>, Vec<_>) =
            listeners.partition(|(name, _)| is_for_names(*name));
        workers.tell_names(inside);
        let mut answers = Vec::new();
        for inbox in &workers.inboxes {
            let (done, answer) = oneshot::channel();
            let message = ToWorker::Listen {
                listeners: outside.clone(),
                done,
            };
            // One that has ended is told by its answer, which does not come.
            drop(inbox.send(message));
            answers.push(answer);
        }
        for answer in answers {
            answer
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the worker has ended")))?;
        }
        self.accepting = wanted;
        Ok(())
    }

    /// Says that this proxy accepts connections: its predecessor may go.
    pub(super) fn ready(&mut self) -> Result<(), HandoffError> {
        match &mut self.supervisor {
            Some(supervisor) => supervisor.ready(std::process::id()),
            None => Ok(()),
        }
    }

    /// A supervisor that started after this proxy: gets every descriptor, and is asked from now on.
    pub(super) fn adopted(&mut self, stream: UnixStream) -> Result<(), HandoffError> {
        let stream = stream.into_std().map_err(HandoffError::Socket)?;
        let mut client = Client::over(stream)?;
        for (name, descriptor) in &self.descriptors {
            client.deposit(&name.to_string(), descriptor)?;
        }
        client.ready(std::process::id())?;
        self.supervisor = Some(client);
        Ok(())
    }
}
