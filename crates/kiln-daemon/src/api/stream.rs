//! An answer of JSON values, one a line, that come over time. What its reader has not taken yet is bounded.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Lines are handed on in pieces of about this size.
const PIECE: usize = 64 * 1024;
/// Pieces that may wait for the reader.
const PIECES: usize = 8;

/// Answers with what a body gives.
pub(super) fn respond<B>(body: B) -> Response
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let kind = HeaderValue::from_static("application/x-ndjson");
    ([(header::CONTENT_TYPE, kind)], Body::new(body)).into_response()
}

/// The writing end of a stream.
pub(super) struct Sender {
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Why nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendError {
    /// The reader took nothing until the deadline.
    Slow,
    /// The reader is gone.
    Gone,
}

pub(super) fn stream() -> (Sender, Response) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let sender = Sender {
        pieces,
        piece: Vec::new(),
    };
    (sender, respond(Pieces(receiver)))
}

impl Sender {
    /// Adds a line; waits for room until `deadline`, or for as long as it takes. After [`SendError::Slow`] the line was not
    /// added.
    pub(super) async fn send<T: Serialize>(
        &mut self,
        value: &T,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        if self.piece.len() >= PIECE {
            self.flush(deadline).await?;
        }
        // Our own types always have a JSON form.
        if serde_json::to_writer(&mut self.piece, value).is_ok() {
            self.piece.push(b'\n');
        }
        Ok(())
    }

    /// Hands on what was added.
    pub(super) async fn flush(&mut self, deadline: Option<Instant>) -> Result<(), SendError> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let permit = match deadline {
            None => self.pieces.reserve().await,
            Some(deadline) => match timeout_at(deadline, self.pieces.reserve()).await {
                Ok(permit) => permit,
                Err(_) => return Err(SendError::Slow),
            },
        };
        let permit = permit.map_err(|_| SendError::Gone)?;
        permit.send(std::mem::take(&mut self.piece).into());
        Ok(())
    }

    /// The reader is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Until the reader is gone.
    pub(super) async fn closed(&self) {
        self.pieces.closed().await;
    }
}
