//! The little of nf_tables' netlink protocol (linux/netfilter/nf_tables.h) that a root's firewall needs: rules as lists of
//! expressions, and transactions that take effect whole or not at all.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::netlink::Message;

pub(crate) const FAMILY_INET: u8 = 1;
pub(crate) const FAMILY_IPV4: u8 = 2;

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const TABLE_NEW: u16 = SUBSYSTEM << 8;
const TABLE_GET: u16 = SUBSYSTEM << 8 | 1;
const TABLE_DELETE: u16 = SUBSYSTEM << 8 | 2;
const CHAIN_NEW: u16 = SUBSYSTEM << 8 | 3;
const CHAIN_GET: u16 = SUBSYSTEM << 8 | 4;
const RULE_NEW: u16 = SUBSYSTEM << 8 | 6;
const RULE_GET: u16 = SUBSYSTEM << 8 | 7;
const RULE_DELETE: u16 = SUBSYSTEM << 8 | 8;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// The 16 byte registers.
const VERDICT: u32 = 0;
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// Where a chain is called by the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Postrouting = 4,
}

#[derive(Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

#[derive(Clone, Copy)]
pub(crate) enum Verdict {
    Drop = 0,
    Accept = 1,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp = 6,
    Udp = 17,
}

fn put(message: Message, kind: u16, value: u32) -> Message {
    message.attribute(kind, &value.to_be_bytes())
}

/// What a packet has to be, in this order, and what becomes of it then.
pub(crate) struct Rule(Message);

impl Rule {
    pub(crate) fn new() -> Self {
        Self(Message(Vec::new()))
    }

    fn expression(self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        Self(self.0.nested(LIST_ELEMENT, |element| {
            element
                .name(EXPRESSION_NAME, name)
                .nested(EXPRESSION_DATA, data)
        }))
    }

    /// Loads a property of the packet (`nft_meta_keys`).
    fn meta(self, key: u32) -> Self {
        self.expression("meta", |meta| put(put(meta, 1, FIRST), 2, key))
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |compare| {
            put(put(compare, 1, FIRST), 2, operator)
                .nested(3, |data| data.attribute(DATA_VALUE, value))
        })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(0, value)
    }

    fn differs(self, value: &[u8]) -> Self {
        self.compare(1, value)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let zero = vec![0; mask.len()];
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.expression("bitwise", |bitwise| {
            put(put(put(bitwise, 1, FIRST), 2, FIRST), 3, length)
                .nested(4, |data| data.attribute(DATA_VALUE, mask))
                .nested(5, |data| data.attribute(DATA_VALUE, &zero))
        })
    }

    /// Loads bytes of the network (1) or transport (2) header.
    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", |payload| {
            put(
                put(put(put(payload, 1, FIRST), 2, base), 3, offset),
                4,
                length,
            )
        })
    }

    pub(crate) fn comes_by(self, interface: &str) -> Self {
        self.meta(6).equals(&padded(interface))
    }

    pub(crate) fn leaves_by(self, interface: &str) -> Self {
        self.meta(7).equals(&padded(interface))
    }

    pub(crate) fn leaves_not_by(self, interface: &str) -> Self {
        self.meta(7).differs(&padded(interface))
    }

    /// Any interface whose name begins so.
    pub(crate) fn leaves_by_any(self, prefix: &str) -> Self {
        self.meta(7).equals(prefix.as_bytes())
    }

    pub(crate) fn speaks_ipv6(self) -> Self {
        const NFPROTO_IPV6: u8 = 10;
        self.meta(15).equals(&[NFPROTO_IPV6])
    }

    /// Of a connection that was let through before, or about one.
    pub(crate) fn of_established(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.expression("ct", |ct| put(put(ct, 1, FIRST), 2, 0))
            .masked(&ESTABLISHED_OR_RELATED.to_ne_bytes())
            .differs(&[0; 4])
    }

    pub(crate) fn from(self, network: Ipv4Addr, prefix: u8) -> Self {
        self.address(12, network, prefix)
    }

    pub(crate) fn to(self, network: Ipv4Addr, prefix: u8) -> Self {
        self.address(16, network, prefix)
    }

    fn address(self, offset: u32, network: Ipv4Addr, prefix: u8) -> Self {
        const NFPROTO_IPV4: u8 = 2;
        let loaded = self.meta(15).equals(&[NFPROTO_IPV4]).payload(1, offset, 4);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        loaded.masked(&mask.to_be_bytes()).equals(&network.octets())
    }

    pub(crate) fn speaks(self, protocol: Protocol) -> Self {
        self.meta(16).equals(&[protocol as u8])
    }

    pub(crate) fn at_port(self, protocol: Protocol, port: u16) -> Self {
        self.speaks(protocol)
            .payload(2, 2, 2)
            .equals(&port.to_be_bytes())
    }

    pub(crate) fn then(self, verdict: Verdict) -> Self {
        self.expression("immediate", |immediate| {
            put(immediate, 1, VERDICT).nested(2, |data| {
                data.nested(DATA_VERDICT, |inner| put(inner, 1, verdict as u32))
            })
        })
    }

    /// Sends it to another address and port of this machine, and its answers back as if from where it was sent to.
    pub(crate) fn redirect_to(self, address: Ipv4Addr, port: u16) -> Self {
        const DESTINATION: u32 = 1;
        let load = |rule: Self, register, value: &[u8]| {
            rule.expression("immediate", |immediate| {
                put(immediate, 1, register).nested(2, |data| data.attribute(DATA_VALUE, value))
            })
        };
        let loaded = load(self, FIRST, &address.octets());
        load(loaded, SECOND, &port.to_be_bytes()).expression("nat", |nat| {
            let nat = put(put(nat, 1, DESTINATION), 2, u32::from(FAMILY_IPV4));
            put(put(nat, 3, FIRST), 5, SECOND)
        })
    }

    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", |masq| masq)
    }
}

/// As the kernel holds it: 16 bytes.
fn padded(interface: &str) -> [u8; 16] {
    let mut name = [0; 16];
    let length = interface.len().min(15);
    name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    name
}

/// Changes that the kernel makes all at once.
pub(crate) struct Transaction {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Transaction {
    pub(crate) fn new() -> Self {
        let mut this = Self {
            bytes: Vec::new(),
            sequence: 0,
        };
        this.delimit(BATCH_BEGIN);
        this
    }

    /// A table that is empty afterwards, whatever it was before.
    pub(crate) fn renew_table(&mut self, family: u8, table: &str) {
        // Only one that is there can be deleted.
        self.push(TABLE_NEW, CREATE, family, |m| m.name(TABLE_NAME, table));
        self.delete_table(family, table);
        self.push(TABLE_NEW, CREATE, family, |m| m.name(TABLE_NAME, table));
    }

    pub(crate) fn delete_table(&mut self, family: u8, table: &str) {
        self.push(TABLE_DELETE, 0, family, |m| m.name(TABLE_NAME, table));
    }

    /// With the policy to accept.
    pub(crate) fn add_chain(&mut self, family: u8, table: &str, chain: Chain) {
        self.push(CHAIN_NEW, CREATE, family, |m| {
            m.name(CHAIN_TABLE, table)
                .name(CHAIN_NAME, chain.name)
                .nested(CHAIN_HOOK, |hook| {
                    let hook = put(hook, HOOK_NUMBER, chain.hook as u32);
                    hook.attribute(HOOK_PRIORITY, &chain.priority.to_be_bytes())
                })
                .name(CHAIN_TYPE, chain.kind)
        });
    }

    /// At the chain's end.
    pub(crate) fn append(&mut self, family: u8, table: &str, chain: &str, rule: Rule) {
        self.add_rule(APPEND, (family, table, chain), rule, None);
    }

    /// At the chain's beginning; `mark` is what the rule is found by again.
    pub(crate) fn insert(&mut self, family: u8, table: &str, chain: &str, rule: Rule, mark: &str) {
        self.add_rule(0, (family, table, chain), rule, Some(mark));
    }

    fn add_rule(
        &mut self,
        flags: u16,
        (family, table, chain): (u8, &str, &str),
        rule: Rule,
        mark: Option<&str>,
    ) {
        self.push(RULE_NEW, CREATE | flags, family, |m| {
            let m = m.name(RULE_TABLE, table).name(RULE_CHAIN, chain);
            let m = m.nested(RULE_EXPRESSIONS, |_| rule.0);
            match mark {
                Some(mark) => m.attribute(RULE_USERDATA, &comment(mark)),
                None => m,
            }
        });
    }

    pub(crate) fn delete_rule(&mut self, family: u8, table: &str, chain: &str, handle: u64) {
        self.push(RULE_DELETE, 0, family, |m| {
            m.name(RULE_TABLE, table)
                .name(RULE_CHAIN, chain)
                .attribute(RULE_HANDLE, &handle.to_be_bytes())
        });
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, fill: impl FnOnce(Message) -> Message) {
        self.sequence += 1;
        self.bytes
            .extend(request(kind, flags, family, self.sequence, fill));
    }

    /// Begin and end are answered only where the whole batch is refused.
    fn delimit(&mut self, kind: u16) {
        let mut bytes = request(kind, 0, 0, self.sequence, |m| m);
        bytes[6..8].copy_from_slice(&1_u16.to_ne_bytes());
        bytes[18..20].copy_from_slice(&SUBSYSTEM.to_be_bytes());
        self.bytes.extend(bytes);
    }

    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.delimit(BATCH_END);
        let socket = open()?;
        rustix::net::send(&socket, &self.bytes, SendFlags::empty())?;
        // The kernel has answered when the call returns.
        let mut answer = vec![0; 64 * 1024];
        loop {
            let received = rustix::net::recv(&socket, &mut answer[..], RecvFlags::DONTWAIT);
            match received {
                Ok((read, _)) => messages(&answer[..read]).try_for_each(|(kind, body)| {
                    if kind == ERROR { refusal(body) } else { Ok(()) }
                })?,
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// As `nft` writes and shows them.
fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

fn request(
    kind: u16,
    flags: u16,
    family: u8,
    sequence: u32,
    fill: impl FnOnce(Message) -> Message,
) -> Vec<u8> {
    let mut message = Message::new(kind, flags);
    message.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
    // `struct nfgenmsg`.
    message.0.extend([family, 0, 0, 0]);
    let mut bytes = fill(message).0;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn open() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::NETFILTER),
    )?)
}

fn refusal(body: &[u8]) -> io::Result<()> {
    let code = body
        .first_chunk()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// Type and body of each message in what was received at once.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Type, without its flags, and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The answers to one question, without their `nfgenmsg`. What is not there has none.
fn ask(
    kind: u16,
    flags: u16,
    family: u8,
    fill: impl FnOnce(Message) -> Message,
) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    let bytes = request(kind, flags, family, 1, fill);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    let mut answers = Vec::new();
    let mut answer = vec![0; 64 * 1024];
    loop {
        let (read, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&answer[..read]) {
            match kind {
                DONE => return Ok(answers),
                ERROR => {
                    return match refusal(body) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                        Err(error) => Err(error),
                        Ok(()) => Ok(answers),
                    };
                }
                _ => answers.push(body.get(4..).unwrap_or_default().to_vec()),
            }
        }
    }
}

pub(crate) fn has_table(family: u8, table: &str) -> io::Result<bool> {
    let found = ask(TABLE_GET, 0, family, |m| m.name(TABLE_NAME, table))?;
    Ok(!found.is_empty())
}

pub(crate) fn has_chain(family: u8, table: &str, chain: &str) -> io::Result<bool> {
    let found = ask(CHAIN_GET, 0, family, |m| {
        m.name(CHAIN_TABLE, table).name(CHAIN_NAME, chain)
    })?;
    Ok(!found.is_empty())
}

/// The handles of the chain's rules that were inserted with this mark.
pub(crate) fn marked_rules(
    family: u8,
    table: &str,
    chain: &str,
    mark: &str,
) -> io::Result<Vec<u64>> {
    let rules = ask(RULE_GET, DUMP, family, |m| {
        m.name(RULE_TABLE, table).name(RULE_CHAIN, chain)
    })?;
    let mark = comment(mark);
    let handle_of = |rule: &[u8]| {
        let find =
            |wanted| attributes(rule).find_map(|(kind, value)| (kind == wanted).then_some(value));
        let is_marked = find(RULE_USERDATA).is_some_and(|data| data == mark);
        let handle = find(RULE_HANDLE)?.first_chunk().copied()?;
        is_marked.then_some(u64::from_be_bytes(handle))
    };
    Ok(rules.iter().filter_map(|rule| handle_of(rule)).collect())
}
