//! Digests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::Kind::Text;
use super::{Fault, Function, fault, function};
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function("base64sha256", &[("text", Text)], |_, a| {
        base64_of::<Sha256>(a.text(0).as_bytes())
    }),
    function("base64sha512", &[("text", Text)], |_, a| {
        base64_of::<Sha512>(a.text(0).as_bytes())
    }),
    function("md5", &[("text", Text)], |_, a| {
        hex_of::<Md5>(a.text(0).as_bytes())
    }),
    function("sha1", &[("text", Text)], |_, a| {
        hex_of::<Sha1>(a.text(0).as_bytes())
    }),
    function("sha256", &[("text", Text)], |_, a| {
        hex_of::<Sha256>(a.text(0).as_bytes())
    }),
    function("sha512", &[("text", Text)], |_, a| {
        hex_of::<Sha512>(a.text(0).as_bytes())
    }),
    function("uuidv5", &[("namespace", Text), ("name", Text)], |_, a| {
        uuidv5(a.text(0), a.text(1))
    }),
];

pub(super) fn hex_of<D: Digest>(bytes: &[u8]) -> Result<Value, Fault> {
    Ok(Value::String(hex(&D::digest(bytes))))
}

pub(super) fn base64_of<D: Digest>(bytes: &[u8]) -> Result<Value, Fault> {
    Ok(Value::String(STANDARD.encode(D::digest(bytes))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 9562, section 5.5.
fn uuidv5(namespace: &str, name: &str) -> Result<Value, Fault> {
    // RFC 9562, section 6.6: the four that have names.
    let known = match namespace {
        "dns" => "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "url" => "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
        "oid" => "6ba7b812-9dad-11d1-80b4-00c04fd430c8",
        "x500" => "6ba7b814-9dad-11d1-80b4-00c04fd430c8",
        other => other,
    };
    let digits: Vec<u8> = known
        .chars()
        .filter_map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let right = known.len() == 36
        && digits.len() == 32
        && known.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
    if !right {
        return fault(
            0,
            format!("`{namespace}`"),
            "dns, url, oid, x500 or a UUID",
            "write \"dns\"",
        );
    }
    let mut input: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    input.extend(name.as_bytes());
    let digest = Sha1::digest(&input);
    let mut bytes = digest[..16].to_vec();
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    Ok(Value::String(format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )))
}
