//! The owner and the addresses that services are reached at, from outside and from inside.

use std::net::SocketAddr;

use kiln_plan::Service;

use crate::owner::{Owner, chain_of};

impl Owner {
    pub(crate) fn listen(&mut self, address: SocketAddr) {
        let listens = self.listeners.ensure(address);
        self.noted("listen", listens);
    }

    /// Instances reach services and names from now on.
    pub(crate) fn open_inside(&mut self) {
        let engine = &self.effects.engine;
        match self.listeners.ensure_inside(engine.gateway()) {
            Ok(ports) => {
                let opened = engine.open_inside(ports);
                self.noted("network", opened);
            }
            Err(error) => {
                self.problems.insert("network", chain_of(&error));
            }
        }
    }

    /// What is wrong is told in the status until it is right.
    pub(crate) fn noted(&mut self, what: &'static str, result: Result<(), impl std::error::Error>) {
        match result {
            Ok(()) => self.problems.remove(what),
            Err(error) => self.problems.insert(what, chain_of(&error)),
        };
    }

    pub(crate) fn release_listeners(&mut self) {
        let wanted: Vec<_> = self.services.values().flat_map(Service::listens).collect();
        if let Err(error) = self.listeners.keep_only(&wanted) {
            self.problems.insert("listen", chain_of(&error));
        }
    }
}
