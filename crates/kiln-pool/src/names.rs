//! What is answered to a question for a name (RFC 1035).

use std::net::Ipv4Addr;

use kiln_model::ZONE;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

/// An address outlives the instances behind it, but not its service.
const TTL_SECONDS: u32 = 30;

/// What becomes of a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The whole answer.
    Answer(Vec<u8>),
    /// Not of kiln's zone: the host's own name servers know.
    Forward,
    /// No query that can be answered, not even with an error.
    Ignore,
}

/// `address_of` gets `SERVICE` and `ENVIRONMENT` in lower case. Without `forwards`, what is not of the zone is refused.
pub fn reply(
    query: &[u8],
    forwards: bool,
    address_of: impl Fn(&str, &str) -> Option<Ipv4Addr>,
) -> Reply {
    let Ok(query) = Packet::parse(query) else {
        return Reply::Ignore;
    };
    let [question] = query.questions.as_slice() else {
        return Reply::Ignore;
    };
    if query.has_flags(PacketFlag::RESPONSE) || query.opcode() != OPCODE::StandardQuery {
        return Reply::Ignore;
    }
    let labels: Vec<String> = question
        .qname
        .as_bytes()
        .map(|label| String::from_utf8_lossy(label).to_lowercase())
        .collect();
    let inside = labels
        .iter()
        .rev()
        .map(String::as_str)
        .zip(ZONE.iter().rev().copied())
        .filter(|(label, zone)| label == zone)
        .count()
        == ZONE.len();
    if !inside && forwards {
        return Reply::Forward;
    }
    let mut answer = Packet::new_reply(query.id());
    answer.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        answer.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    answer.questions.push(question.clone());
    if inside {
        answer.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        let is_of_internet = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
        let address = match labels.as_slice() {
            [service, environment, _, _] => address_of(service, environment),
            _ => None,
        };
        match address.filter(|_| is_of_internet) {
            None => *answer.rcode_mut() = RCODE::NameError,
            // The name is there, and has no other records.
            Some(address) => {
                if matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) {
                    let data = RData::A(A {
                        address: address.into(),
                    });
                    let name = question.qname.clone();
                    let record = ResourceRecord::new(name, CLASS::IN, TTL_SECONDS, data);
                    answer.answers.push(record);
                }
            }
        }
    } else {
        *answer.rcode_mut() = RCODE::Refused;
    }
    answer
        .build_bytes_vec()
        .map_or(Reply::Ignore, Reply::Answer)
}

#[cfg(test)]
mod tests {
    use simple_dns::{Name, Question};

    use super::*;

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut query = Packet::new_query(7);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        query.questions.push(Question::new(
            Name::new_unchecked(name),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        query.build_bytes_vec().unwrap()
    }

    fn ask(name: &str, kind: TYPE, forwards: bool) -> Reply {
        reply(&query(name, kind), forwards, |service, environment| {
            ((service, environment) == ("api", "dev")).then_some(Ipv4Addr::new(10, 64, 2, 2))
        })
    }

    fn answered(reply: Reply) -> (RCODE, Vec<Ipv4Addr>) {
        let Reply::Answer(bytes) = reply else {
            panic!("{reply:?}")
        };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.id(), packet.questions.len()), (7, 1));
        let addresses = packet.answers.iter().map(|record| {
            let RData::A(a) = &record.rdata else {
                panic!("{:?}", record.rdata)
            };
            a.address.into()
        });
        (packet.rcode(), addresses.collect())
    }

    #[test]
    fn a_service_has_one_address_and_no_other_records() {
        let address = Ipv4Addr::new(10, 64, 2, 2);
        for name in ["api.dev.kiln.internal", "API.Dev.KILN.Internal"] {
            let reply = answered(ask(name, TYPE::A, true));
            assert_eq!(reply, (RCODE::NoError, vec![address]));
        }
        let other = answered(ask("api.dev.kiln.internal", TYPE::AAAA, true));
        assert_eq!(other, (RCODE::NoError, vec![]));
    }

    #[test]
    fn what_is_not_there_is_said_not_to_be_and_never_asked_of_the_world() {
        for name in [
            "api.staging.kiln.internal",
            "dev.kiln.internal",
            "a.api.dev.kiln.internal",
            "kiln.internal",
        ] {
            let reply = answered(ask(name, TYPE::A, true));
            assert_eq!(reply, (RCODE::NameError, vec![]), "{name}");
        }
    }

    #[test]
    fn the_world_is_asked_for_those_who_may() {
        for name in ["example.org", "internal", "api", "api.dev.kiln.example"] {
            assert_eq!(ask(name, TYPE::A, true), Reply::Forward, "{name}");
            let refused = answered(ask(name, TYPE::A, false));
            assert_eq!(refused, (RCODE::Refused, vec![]), "{name}");
        }
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let mut answer = query("api.dev.kiln.internal", TYPE::A);
        answer[2] |= 0x80;
        let cut = &query("api.dev.kiln.internal", TYPE::A)[..20];
        for bytes in [&answer[..], cut, b"", b"GET / HTTP/1.1\r\n\r\n"] {
            let reply = reply(bytes, true, |_, _| None);
            assert_eq!(reply, Reply::Ignore);
        }
    }
}
