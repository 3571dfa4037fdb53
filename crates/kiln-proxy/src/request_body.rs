//! The body of a request on its way to the instance: passed on frame by frame, never gathered. What asks for the next frame
//! is the instance's free buffer, so a slow instance slows its client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::flight::{BadBody, Flight, WaitsFor};

/// The request's, towards the instance.
pub(super) struct RequestBody {
    /// `None`: it has none.
    inner: Option<Incoming>,
    flight: Rc<Flight>,
}

impl RequestBody {
    pub(super) fn new(inner: Option<Incoming>, flight: Rc<Flight>) -> Self {
        Self { inner, flight }
    }

    pub(super) fn into_inner(self) -> Option<Incoming> {
        self.inner
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(inner).poll_frame(context);
        self.flight.body_taken.set(true);
        match &polled {
            Poll::Pending => self.flight.waits_for(WaitsFor::Client),
            Poll::Ready(Some(Err(error))) => {
                self.flight.bad_body.set(Some(if is_gone(error) {
                    BadBody::Gone
                } else {
                    BadBody::Malformed
                }));
                self.flight.touch(WaitsFor::Instance);
            }
            Poll::Ready(_) => self.flight.touch(WaitsFor::Instance),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Whether the client's connection ended, rather than said something malformed.
fn is_gone(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{
                BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof,
            };
            return matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
            );
        }
        source = error.source();
    }
    error.is_incomplete_message() || error.is_closed() || error.is_canceled()
}
