//! The body of an answer on its way to the client: passed on frame by frame, never gathered. What asks for the next frame is
//! the client's free buffer, so a slow client slows its instance.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::flight::{Outcome, Ticket, WaitsFor};
use super::pool::Lease;

/// The answer's, towards the client.
pub(super) enum AnswerBody {
    /// The proxy's own words.
    Own(Full<Bytes>),
    Instance(InstanceBody),
}

pub(super) struct InstanceBody {
    inner: Incoming,
    /// `None` once it has ended.
    held: Option<(Ticket, Lease)>,
}

impl InstanceBody {
    pub(super) fn new(inner: Incoming, ticket: Ticket, lease: Lease) -> Self {
        let mut body = Self {
            inner,
            held: Some((ticket, lease)),
        };
        if body.inner.is_end_stream() {
            body.ended();
        }
        body
    }

    fn ended(&mut self) {
        if let Some((ticket, lease)) = self.held.take() {
            ticket.flight.outcome(Outcome::Served);
            lease.give_back();
        }
    }

    fn failed(&mut self) {
        if let Some((ticket, _lease)) = self.held.take() {
            ticket.flight.outcome(Outcome::Failed);
            ticket.flight.client_side.reset_at_end();
        }
    }
}

impl Drop for InstanceBody {
    fn drop(&mut self) {
        // hyper doesn't ask for the end where it knows it. Otherwise: the client went away, which is the
        // outcome that a flight begins with.
        if self.inner.is_end_stream() {
            self.ended();
        }
    }
}

/// The answer ends in the middle.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutBody {
    #[error("the instance's answer broke off")]
    Instance(#[source] hyper::Error),
    #[error("the answer was ended by the proxy: a deadline was past")]
    Deadline,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = CutBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutBody>>> {
        let body = match self.get_mut() {
            Self::Own(body) => {
                return Pin::new(body)
                    .poll_frame(context)
                    .map_err(|never| match never {});
            }
            Self::Instance(body) => body,
        };
        let Some((ticket, _)) = &body.held else {
            return Poll::Ready(None);
        };
        if ticket.flight.end_reason().is_some() {
            body.failed();
            return Poll::Ready(Some(Err(CutBody::Deadline)));
        }
        ticket.flight.wake_by(context);
        match Pin::new(&mut body.inner).poll_frame(context) {
            Poll::Pending => {
                ticket.flight.waits_for(WaitsFor::Instance);
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                ticket.flight.touch(WaitsFor::Client);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                body.failed();
                Poll::Ready(Some(Err(CutBody::Instance(error))))
            }
            Poll::Ready(None) => {
                body.ended();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Instance(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Instance(body) => body.inner.size_hint(),
        }
    }
}
