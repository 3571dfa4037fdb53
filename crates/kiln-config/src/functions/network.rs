//! Networks in CIDR notation (RFC 4632, RFC 4291).
//!
//! The address is one number for both families, since Terraform's functions count in it. A library (ipnet) has a type for each
//! family, and its subnets are iterators, so that it would make this longer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Kind::{Text, Whole};
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "cidrcontains",
        &[("prefix", Text), ("other", Text)],
        |_, a| {
            let (network, other) = (Network::read(a, 0)?, Network::or_address(a, 1)?);
            let is_same_family = network.width == other.width;
            Ok(Value::Bool(
                is_same_family
                    && network.length <= other.length
                    && other.first & network.mask() == network.first,
            ))
        },
    ),
    function("cidrhost", &[("prefix", Text), ("number", Whole)], host),
    function("cidrnetmask", &[("prefix", Text)], |_, a| {
        let network = Network::read(a, 0)?;
        if network.width != 32 {
            let help = "write the length of the prefix itself: IPv6 has no masks";
            return fault(0, "a network of IPv6", "a network of IPv4", help);
        }
        Ok(Value::String(network.address(network.mask())))
    }),
    function(
        "cidrsubnet",
        &[("prefix", Text), ("newbits", Whole), ("number", Whole)],
        |_, a| {
            let network = Network::read(a, 0)?;
            let length = network.longer(a, 1)?;
            let number = u128::try_from(a.whole(2)).ok();
            let most = 1_u128.checked_shl(length - network.length);
            match number.filter(|number| most.is_none_or(|most| *number < most)) {
                Some(number) => Ok(Value::String(network.part(length, number))),
                None => {
                    let bits = length - network.length;
                    let expected = format!("a number that {bits} bits hold");
                    fault(
                        2,
                        a.whole(2).to_string(),
                        expected,
                        "give `newbits` more bits",
                    )
                }
            }
        },
    ),
    function("cidrsubnets", &[("prefix", Text)], subnets).more("newbits", Whole),
];

#[derive(Clone, Copy)]
struct Network {
    /// Of the addresses, in bits.
    width: u32,
    length: u32,
    /// Its first address; the bits behind the prefix are 0.
    first: u128,
}

impl Network {
    fn read(a: &Arguments, index: usize) -> Result<Self, Fault> {
        let text = a.text(index);
        let parse = || -> Option<Self> {
            let (address, length) = text.split_once('/')?;
            let (bits, width) = match address.parse().ok()? {
                IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
                IpAddr::V6(address) => (address.to_bits(), 128),
            };
            let is_plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length
                .parse()
                .ok()
                .filter(|length| is_plain && *length <= width)?;
            let mut network = Self {
                width,
                length,
                first: 0,
            };
            network.first = bits & network.mask();
            Some(network)
        };
        match parse() {
            Some(network) => Ok(network),
            None => fault(
                index,
                format!("`{text}`"),
                "an address, `/` and the length of the prefix",
                "write a network such as \"10.0.0.0/8\" or \"fd00::/8\"",
            ),
        }
    }

    /// An address alone is a network of its own.
    fn or_address(a: &Arguments, index: usize) -> Result<Self, Fault> {
        let (first, width) = match a.text(index).parse() {
            Ok(IpAddr::V4(address)) => (u128::from(address.to_bits()), 32),
            Ok(IpAddr::V6(address)) => (address.to_bits(), 128),
            Err(_) => return Self::read(a, index),
        };
        Ok(Self {
            width,
            length: width,
            first,
        })
    }

    fn mask(&self) -> u128 {
        let all = u128::MAX >> (128 - self.width);
        let hosts = u128::MAX
            .checked_shr(128 - (self.width - self.length))
            .unwrap_or(0);
        all & !hosts
    }

    fn address(&self, bits: u128) -> String {
        if self.width == 32 {
            Ipv4Addr::from_bits(bits as u32).to_string()
        } else {
            Ipv6Addr::from_bits(bits).to_string()
        }
    }

    /// The length of a prefix with as many more bits as the argument says.
    fn longer(&self, a: &Arguments, index: usize) -> Result<u32, Fault> {
        let left = self.width - self.length;
        match u32::try_from(a.whole(index))
            .ok()
            .filter(|bits| *bits <= left)
        {
            Some(bits) => Ok(self.length + bits),
            None => fault(
                index,
                a.whole(index).to_string(),
                format!(
                    "a number from 0 to {left}, the bits that /{} leaves",
                    self.length
                ),
                "write fewer bits, or begin with a larger network",
            ),
        }
    }

    /// The network with this length and number in this one.
    fn part(&self, length: u32, number: u128) -> String {
        let shifted = number.checked_shl(self.width - length).unwrap_or(0);
        format!("{}/{length}", self.address(self.first | shifted))
    }
}

fn host(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let network = Network::read(a, 0)?;
    let wanted = a.whole(1);
    let hosts = network.width - network.length;
    // `None`: more than there are numbers.
    let count = 1_u128.checked_shl(hosts);
    let number = match u128::try_from(wanted) {
        Ok(number) => Some(number).filter(|number| count.is_none_or(|count| *number < count)),
        // Below 0 it counts from the end.
        Err(_) => {
            let back = u128::from(wanted.unsigned_abs());
            match count {
                Some(count) => count.checked_sub(back),
                None => Some(u128::MAX - (back - 1)),
            }
        }
    };
    match number {
        Some(number) => Ok(Value::String(network.address(network.first | number))),
        None => fault(
            1,
            wanted.to_string(),
            format!("a number that {hosts} bits hold"),
            "write a smaller one, or begin with a larger network",
        ),
    }
}

/// One behind the other, each where it begins at a multiple of its size.
fn subnets(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let network = Network::read(a, 0)?;
    let mut parts = Vec::new();
    // Counted from the first address; `None`: behind the last one of all.
    let mut next = Some(0_u128);
    let end = 1_u128.checked_shl(network.width - network.length);
    for index in 1..a.values.len() {
        let length = network.longer(a, index)?;
        let shift = network.width - length;
        let size = 1_u128.checked_shl(shift);
        let begin = match (next, size) {
            (Some(0), _) => Some(0),
            (Some(next), Some(size)) => next.checked_next_multiple_of(size),
            _ => None,
        };
        let Some(begin) = begin.filter(|begin| end.is_none_or(|end| *begin < end)) else {
            return fault(
                index,
                "a network that does not fit behind those before it",
                format!("one of what is left of /{}", network.length),
                "write more bits (a smaller network), or begin with a larger one",
            );
        };
        let number = begin.checked_shr(shift).unwrap_or(0);
        parts.push(network.part(length, number));
        next = size.and_then(|size| begin.checked_add(size));
    }
    Ok(a.list_of_texts(parts))
}
