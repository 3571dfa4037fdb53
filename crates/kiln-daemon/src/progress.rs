//! What a caller hears of the rollout that it asked for.
//!
//! The owner must never wait for a caller, and a caller may stop reading. So what waits for it is bounded: of too many steps
//! the oldest are left out, and a mark says how many. An outcome always gets through: there is one a service.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Bytes;
use http_body::Frame;
use kiln_model::api::Progress;

/// Steps that may wait for the caller. A rollout of a service has about ten.
const STEPS: usize = 256;

/// Where the owner tells how it goes. The answer ends when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Writer>);

struct Writer(Arc<Mutex<Queue>>);

/// What the caller reads: JSON, one value a line.
pub(crate) struct Answer(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Progress>,
    /// The newest of the steps that were left out, and how many there were.
    left_out: Option<(Progress, u64)>,
    /// Nothing will be added.
    ended: bool,
    /// Nobody reads any more.
    closed: bool,
    waker: Option<Waker>,
}

pub(crate) fn lines() -> (Lines, Answer) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    let lines = Lines(Arc::new(Writer(Arc::clone(&queue))));
    (lines, Answer(queue))
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lines {
    /// False when nobody listens any more. Never waits.
    pub(crate) fn send(&self, line: &Progress) -> bool {
        let mut queue = lock(&self.0.0);
        if queue.closed {
            return false;
        }
        queue.push(line.clone());
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
        true
    }
}

impl Queue {
    fn push(&mut self, line: Progress) {
        self.waiting.push_back(line);
        let is_step = |line: &Progress| matches!(line, Progress::Step { .. });
        if self.waiting.len() > STEPS
            && let Some(oldest) = self.waiting.iter().position(is_step)
            && let Some(step) = self.waiting.remove(oldest)
        {
            let before = self.left_out.take().map_or(0, |(_, count)| count);
            self.left_out = Some((step, before + 1));
        }
    }

    /// Everything that waits, as lines of JSON.
    fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mark = self
            .left_out
            .take()
            .and_then(|(step, count)| mark(step, count));
        for line in mark.into_iter().chain(self.waiting.drain(..)) {
            // Our own types always have a JSON form.
            if serde_json::to_writer(&mut bytes, &line).is_ok() {
                bytes.push(b'\n');
            }
        }
        bytes
    }
}

/// In place of the steps that were left out.
fn mark(newest: Progress, count: u64) -> Option<Progress> {
    match newest {
        Progress::Step {
            service, at, phase, ..
        } => Some(Progress::Step {
            service,
            at,
            phase,
            message: format!("{count} lines were left out up to here: they were not read in time"),
        }),
        Progress::Outcome { .. } | Progress::Error { .. } => None,
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.ended = true;
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.waiting.clear();
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut queue = lock(&self.0);
        let bytes = queue.take();
        if !bytes.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use kiln_model::Timestamp;
    use kiln_model::api::{Outcome, RequestCount, RolloutResult};

    use super::*;

    fn step(number: u64) -> Progress {
        Progress::Step {
            service: "api".parse().unwrap(),
            at: Timestamp(number),
            phase: "start".to_owned(),
            message: format!("step {number}"),
        }
    }

    fn outcome() -> Progress {
        Progress::Outcome {
            outcome: Outcome {
                service: "api".parse().unwrap(),
                environment: "dev".parse().unwrap(),
                from: None,
                to: None,
                result: RolloutResult::Done,
                reason: None,
                duration_ms: 1,
                requests: RequestCount::default(),
                phases: Vec::new(),
                warm: None,
                url: None,
            },
        }
    }

    fn poll(answer: &mut Answer) -> Option<Vec<Progress>> {
        let mut cx = Context::from_waker(Waker::noop());
        match http_body::Body::poll_frame(Pin::new(answer), &mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.into_data().ok()?;
                let lines = bytes
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty());
                Some(
                    lines
                        .map(|line| serde_json::from_slice(line).unwrap())
                        .collect(),
                )
            }
            Poll::Ready(None) => None,
            Poll::Pending => Some(Vec::new()),
        }
    }

    #[test]
    fn a_caller_that_does_not_read_gets_a_mark_and_every_outcome() {
        let queue = Arc::new(Mutex::new(Queue::default()));
        let mut answer = Answer(Arc::clone(&queue));
        let lines = Lines(Arc::new(Writer(Arc::clone(&queue))));
        assert_eq!(poll(&mut answer), Some(Vec::new()));
        for number in 0..1000 {
            assert!(lines.send(&step(number)));
            if number == 10 {
                assert!(lines.send(&outcome()));
            }
            assert!(lock(&queue).waiting.len() <= STEPS, "what waits is bounded");
        }
        assert!(lines.send(&outcome()));
        drop(lines);
        let told = poll(&mut answer).unwrap();
        let Progress::Step { at, message, .. } = &told[0] else {
            panic!("{:?}", told[0]);
        };
        // 1000 steps and two outcomes were sent, and 256 of them were kept.
        assert_eq!(*at, Timestamp(745));
        assert!(message.starts_with("746 lines were left out"), "{message}");
        assert_eq!(told[1], outcome());
        assert_eq!(told[2], step(746));
        assert_eq!(told.last(), Some(&outcome()));
        assert_eq!(told.len(), STEPS + 1);
        assert_eq!(poll(&mut answer), None);
    }

    #[test]
    fn a_caller_that_went_away_is_told_apart() {
        let queue = Arc::new(Mutex::new(Queue::default()));
        let lines = Lines(Arc::new(Writer(Arc::clone(&queue))));
        drop(Answer(queue));
        assert!(!lines.send(&step(1)));
    }
}
