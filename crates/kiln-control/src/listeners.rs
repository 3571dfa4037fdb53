//! On which addresses of the host sockets listen.
//!
//! A socket is never closed and bound again while its service lives: closing one loses what waits in its accept queue. And
//! none is given up while a proxy may still hold it: who binds it next would be told that it is taken.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kiln_plan::Service;

use crate::controller::Controller;
use crate::input::Effect;
use crate::mutation::Mutation;

impl Controller {
    /// Says where to listen, whatever an earlier controller did.
    pub(crate) fn listen_first(&mut self) {
        let wanted = self.wanted_listeners();
        self.listening = wanted.clone();
        self.effects.push_back(Effect::Listen(wanted));
    }

    /// Says where to listen if that has changed.
    pub(crate) fn listen(&mut self) {
        let wanted = self.wanted_listeners();
        let leaks = self.mutation == Some(Mutation::LeakListeners);
        let less = self.listening.difference(&wanted).next().is_some();
        if wanted == self.listening || leaks && less {
            return;
        }
        self.listening = wanted.clone();
        self.effects.push_back(Effect::Listen(wanted));
    }

    /// Where services listen, or will; and where they did, until every proxy has confirmed that they do no more.
    fn wanted_listeners(&self) -> BTreeSet<SocketAddr> {
        let mut wanted: BTreeSet<_> = self.services.values().flat_map(Service::listens).collect();
        let routes = self.services.values().filter_map(Service::route);
        wanted.extend(routes.filter_map(|route| route.listen));
        if !self.unconfirmed.is_empty() {
            wanted.extend(&self.listening);
        }
        wanted
    }
}
