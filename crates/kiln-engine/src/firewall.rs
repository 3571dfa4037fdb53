//! The root's firewall: what instances reach of the host and beyond it, and how they reach services.
//!
//! | From an instance to | |
//! |---|---|
//! | a service's address | redirected to the proxy's inside listener |
//! | the gateway's port 53 | redirected to the name server, a closed instance's to one that knows services only |
//! | anything else of the host, another root's instances, 169.254.0.0/16 (metadata) | dropped |
//! | everywhere else | masqueraded; dropped for a closed instance |
//!
//! Nothing but the host's own processes reaches an instance. Redirections go to ports that the kernel chose, so that no
//! program of the host can be in the way of a service's port.
//!
//! All is one nf_tables table, named as the bridge, that is replaced as a whole. Where docker's or another `iptables` firewall
//! drops what is forwarded, two rules in its own chain let the bridge pass: there, a packet has to be accepted by every table.

use std::io;
use std::net::Ipv4Addr;

use crate::nftables::{
    Chain, FAMILY_INET, FAMILY_IPV4, Hook, Protocol, Rule, Transaction, Verdict, has_chain,
    has_table, marked_rules,
};

const INPUT: Chain = Chain {
    name: "input",
    kind: "filter",
    hook: Hook::Input,
    priority: 0,
};
const FORWARD: Chain = Chain {
    name: "forward",
    kind: "filter",
    hook: Hook::Forward,
    priority: 0,
};
const PREROUTING: Chain = Chain {
    name: "prerouting",
    kind: "nat",
    hook: Hook::Prerouting,
    priority: -100,
};
const POSTROUTING: Chain = Chain {
    name: "postrouting",
    kind: "nat",
    hook: Hook::Postrouting,
    priority: 100,
};

/// Every bridge of kiln's is named so.
pub(crate) const BRIDGES: &str = "kiln";
const DNS: u16 = 53;
const METADATA: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);

/// Ports of the gateway's address behind which the proxy serves instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsidePorts {
    /// Takes every service's connections.
    pub services: u16,
    pub names_udp: u16,
    pub names_tcp: u16,
    /// Names for instances without a way out.
    pub closed_names_udp: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Firewall {
    pub(crate) bridge: String,
    pub(crate) gateway: Ipv4Addr,
    /// Where instances have their addresses.
    pub(crate) instances: (Ipv4Addr, u8),
    /// `None`: no service is reached.
    pub(crate) services: Option<(Ipv4Addr, u8)>,
    /// `None`: no proxy listens yet.
    pub(crate) ports: Option<InsidePorts>,
    /// Addresses of instances without a way out.
    pub(crate) closed: Vec<Ipv4Addr>,
}

impl Firewall {
    pub(crate) fn write(&self) -> io::Result<()> {
        let table = self.bridge.as_str();
        let mut change = Transaction::new();
        change.renew_table(FAMILY_INET, table);
        for chain in [INPUT, FORWARD, PREROUTING, POSTROUTING] {
            change.add_chain(FAMILY_INET, table, chain);
        }
        let mut add = |chain: Chain, rules: Vec<Rule>| {
            for rule in rules {
                change.append(FAMILY_INET, table, chain.name, rule);
            }
        };
        add(INPUT, self.input());
        add(FORWARD, self.forward());
        add(PREROUTING, self.prerouting());
        let (network, prefix) = self.instances;
        let leaves = Rule::new().from(network, prefix).leaves_not_by(table);
        add(POSTROUTING, vec![leaves.masquerade()]);
        change.commit()
    }

    fn inside(&self) -> Rule {
        Rule::new().comes_by(&self.bridge)
    }

    fn input(&self) -> Vec<Rule> {
        let mut rules = vec![self.inside().of_established().then(Verdict::Accept)];
        if let Some(ports) = self.ports {
            let open = [
                (Protocol::Tcp, ports.services),
                (Protocol::Udp, ports.names_udp),
                (Protocol::Tcp, ports.names_tcp),
                (Protocol::Udp, ports.closed_names_udp),
            ];
            for (protocol, port) in open {
                let rule = self.inside().to(self.gateway, 32).at_port(protocol, port);
                rules.push(rule.then(Verdict::Accept));
            }
            // The name server that knows the world can be asked past the redirection too.
            for closed in &self.closed {
                for (protocol, port) in [
                    (Protocol::Udp, ports.names_udp),
                    (Protocol::Tcp, ports.names_tcp),
                ] {
                    let rule = self.inside().from(*closed, 32).at_port(protocol, port);
                    rules.insert(0, rule.then(Verdict::Drop));
                }
            }
        }
        rules.push(self.inside().then(Verdict::Drop));
        rules
    }

    fn forward(&self) -> Vec<Rule> {
        let outside = || Rule::new().leaves_by(&self.bridge);
        let (metadata, prefix) = METADATA;
        let mut rules = vec![
            self.inside().speaks_ipv6().then(Verdict::Drop),
            self.inside().to(metadata, prefix).then(Verdict::Drop),
            // Through a bridge netfilter, ports of one bridge are seen here as well.
            self.inside().leaves_by_any(BRIDGES).then(Verdict::Drop),
        ];
        for closed in &self.closed {
            rules.push(self.inside().from(*closed, 32).then(Verdict::Drop));
        }
        rules.push(outside().of_established().then(Verdict::Accept));
        rules.push(outside().then(Verdict::Drop));
        rules
    }

    fn prerouting(&self) -> Vec<Rule> {
        let Some(ports) = self.ports else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        for closed in &self.closed {
            let asks = self.inside().from(*closed, 32).to(self.gateway, 32);
            let asks = asks.at_port(Protocol::Udp, DNS);
            rules.push(asks.redirect_to(self.gateway, ports.closed_names_udp));
        }
        for (protocol, port) in [
            (Protocol::Udp, ports.names_udp),
            (Protocol::Tcp, ports.names_tcp),
        ] {
            let asks = self.inside().to(self.gateway, 32).at_port(protocol, DNS);
            rules.push(asks.redirect_to(self.gateway, port));
        }
        if let Some((services, prefix)) = self.services {
            let calls = self.inside().to(services, prefix).speaks(Protocol::Tcp);
            rules.push(calls.redirect_to(self.gateway, ports.services));
        }
        rules
    }
}

/// Whether the root's table is there: others' tools flush everything.
pub(crate) fn is_there(bridge: &str) -> io::Result<bool> {
    has_table(FAMILY_INET, bridge)
}

/// Lets the bridge pass a foreign firewall that drops what it does not know.
pub(crate) fn pass_others(bridge: &str) -> io::Result<()> {
    let Some(chain) = foreign_chain()? else {
        return Ok(());
    };
    if marked_rules(FAMILY_IPV4, FILTER, chain, bridge)?.len() == 2 {
        return Ok(());
    }
    let mut change = Transaction::new();
    let leaves = Rule::new().leaves_by(bridge).then(Verdict::Accept);
    change.insert(FAMILY_IPV4, FILTER, chain, leaves, bridge);
    let comes = Rule::new().comes_by(bridge).then(Verdict::Accept);
    change.insert(FAMILY_IPV4, FILTER, chain, comes, bridge);
    change.commit()
}

/// The table of `iptables`, where it speaks nf_tables.
const FILTER: &str = "filter";

/// The chain that its owner leaves to others: docker never touches `DOCKER-USER`.
fn foreign_chain() -> io::Result<Option<&'static str>> {
    for chain in ["DOCKER-USER", "FORWARD"] {
        if has_chain(FAMILY_IPV4, FILTER, chain)? {
            return Ok(Some(chain));
        }
    }
    Ok(None)
}

/// Nothing of this root is left afterwards.
pub(crate) fn remove(bridge: &str) -> io::Result<()> {
    if has_table(FAMILY_INET, bridge)? {
        let mut change = Transaction::new();
        change.delete_table(FAMILY_INET, bridge);
        change.commit()?;
    }
    for chain in ["DOCKER-USER", "FORWARD"] {
        let ours = marked_rules(FAMILY_IPV4, FILTER, chain, bridge)?;
        if !ours.is_empty() {
            let mut change = Transaction::new();
            for handle in ours {
                change.delete_rule(FAMILY_IPV4, FILTER, chain, handle);
            }
            change.commit()?;
        }
    }
    Ok(())
}
