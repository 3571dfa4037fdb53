//! A request as the instance gets it.

use std::rc::Rc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Method, Request, Uri};

use super::flight::Flight;
use super::headers::{remove_hop_by_hop, set_forwarded};
use super::request_body::RequestBody;

/// Safe to be sent twice (RFC 9110, section 9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// What is to be sent, as long as it is not.
pub(super) struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Option<Incoming>,
}

impl Outgoing {
    /// The same once more, for a request without a body.
    pub(super) fn again(&self) -> Self {
        Self {
            method: self.method.clone(),
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            body: None,
        }
    }

    pub(super) fn into_request(self, flight: &Rc<Flight>) -> Request<RequestBody> {
        let Self {
            method,
            uri,
            headers,
            body,
        } = self;
        let mut request = Request::new(RequestBody::new(body, Rc::clone(flight)));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request
    }

    pub(super) fn from_request(request: Request<RequestBody>) -> Self {
        let (
            Parts {
                method,
                uri,
                headers,
                ..
            },
            body,
        ) = request.into_parts();
        Self {
            method,
            uri,
            headers,
            body: body.into_inner(),
        }
    }
}

/// The head as the instance gets it: path and query as they came.
pub(super) fn outgoing(
    parts: Parts,
    body: Option<Incoming>,
    flight: &Flight,
    upgrade: Option<HeaderValue>,
    id: &HeaderValue,
) -> Outgoing {
    let Parts {
        method,
        uri,
        mut headers,
        ..
    } = parts;
    // RFC 9112, section 3.2.2: an absolute form overrides Host.
    if let Some(host) = uri
        .authority()
        .and_then(|host| HeaderValue::try_from(host.as_str()).ok())
    {
        headers.insert(HOST, host);
    }
    remove_hop_by_hop(&mut headers);
    set_forwarded(&mut headers, flight.client_side.peer, id);
    if let Some(to) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, to);
    }
    let path = uri
        .into_parts()
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Outgoing {
        method,
        uri: Uri::from(path),
        headers,
        body,
    }
}
