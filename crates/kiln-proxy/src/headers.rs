//! What changes in a head on its way: hop-by-hop fields go, forwarding fields are the proxy's own, all else stays.

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// RFC 9110, section 7.6.1. `Transfer-Encoding` is among them: each side frames bodies itself.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Naming these would take away what the message means.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// `Some`: the protocol that the head asks to go over to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if asks {
        headers.get(UPGRADE).cloned()
    } else {
        None
    }
}

/// What the instance is told of the client. No peer is trusted to say it, so what came is replaced. `Expect` was
/// answered by this side already.
pub(super) fn set_forwarded(headers: &mut HeaderMap, peer: IpAddr, request_id: &HeaderValue) {
    for name in [FORWARDED, FORWARDED_PORT, REAL_IP, EXPECT] {
        headers.remove(name);
    }
    if let Ok(peer) = HeaderValue::try_from(peer.to_canonical().to_string()) {
        headers.insert(FORWARDED_FOR, peer);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(REQUEST_ID, request_id.clone());
}

/// An id of the client's is kept if it is one that a log can hold.
pub(super) fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let bytes = id.as_bytes();
    let fits = (1..=200).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    fits.then(|| id.clone())
}

/// Why the framing that a head declares is refused: what another server in the way might read differently.
/// Looks at the bytes, because the parser hides what it has resolved.
pub(super) fn ambiguous_framing(head: &[u8]) -> Option<&'static str> {
    let mut lengths = 0;
    let mut encodings = 0;
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
        }
    }
    match (lengths, encodings) {
        (1.., 1..) => Some("both Content-Length and Transfer-Encoding"),
        (2.., _) => Some("more than one Content-Length"),
        (_, 2..) => Some("more than one Transfer-Encoding"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_the_others_stay() {
        let mut headers = map(&[
            ("connection", "close, x-private, host"),
            ("x-private", "1"),
            ("host", "a"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-other", "2"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("x-other", "2")]));
    }

    #[test]
    fn forwarding_fields_of_a_client_are_replaced() {
        let mut headers = map(&[
            ("host", "shop.example"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
        ]);
        set_forwarded(
            &mut headers,
            [127, 0, 0, 9].into(),
            &HeaderValue::from_static("id"),
        );
        let expected = map(&[
            ("host", "shop.example"),
            ("x-forwarded-for", "127.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "shop.example"),
            ("x-request-id", "id"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn ambiguous_heads_are_told() {
        let head =
            |fields: &str| ambiguous_framing(format!("POST / HTTP/1.1\r\n{fields}\r\n").as_bytes());
        assert!(head("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n").is_some());
        assert!(head("transfer-encoding: chunked\r\nCONTENT-LENGTH: 3\r\n").is_some());
        assert!(head("Content-Length: 3\r\nContent-Length: 3\r\n").is_some());
        assert!(head("Content-Length: 3\r\nX-Content-Length: 3\r\n").is_none());
        assert!(
            head("Content-Length: 3\r\n\r\nTransfer-Encoding: chunked\r\n").is_none(),
            "that is the body"
        );
    }
}
