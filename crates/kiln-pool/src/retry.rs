//! Whether a request that got no answer is sent again: only where nothing of it was sent, or where sending it twice is
//! harmless and nothing was answered.

/// Requests sent again, at most.
pub const RETRIES: usize = 2;

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of the request left the proxy.
    Unsent,
    /// Something of it may have reached the instance.
    Sent,
}

/// What was at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection that had been idle was closed by the instance just then. It says nothing about the instance.
    StaleConnection,
    Instance,
}

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub progress: Progress,
    pub fault: Fault,
    /// Sent twice, the request does no harm, and it can be sent again whole.
    pub repeatable: bool,
    /// There is an instance that was not tried.
    pub has_other: bool,
    /// How often the request was sent again already.
    pub retries: usize,
}

/// What becomes of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Once more, over a new connection; the same instance will do.
    Anew,
    /// Once more, at an instance that was not tried.
    Elsewhere,
    /// The client is told of the failure.
    GiveUp,
}

impl Attempt {
    pub fn retry(self) -> Retry {
        let Self {
            progress,
            fault,
            repeatable,
            has_other,
            retries,
        } = self;
        let may_be_sent = match progress {
            Progress::Unsent => true,
            Progress::Sent => repeatable,
        };
        if !may_be_sent || retries >= RETRIES {
            return Retry::GiveUp;
        }
        match fault {
            Fault::StaleConnection => Retry::Anew,
            Fault::Instance if has_other => Retry::Elsewhere,
            Fault::Instance => Retry::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Attempt = Attempt {
        progress: Progress::Unsent,
        fault: Fault::Instance,
        repeatable: false,
        has_other: true,
        retries: 0,
    };

    #[test]
    fn what_may_have_been_done_is_not_done_twice() {
        assert_eq!(FAILED.retry(), Retry::Elsewhere);
        let sent = Attempt {
            progress: Progress::Sent,
            ..FAILED
        };
        assert_eq!(sent.retry(), Retry::GiveUp);
        let stale = Attempt {
            fault: Fault::StaleConnection,
            ..sent
        };
        assert_eq!(stale.retry(), Retry::GiveUp);
        let harmless = Attempt {
            repeatable: true,
            ..sent
        };
        assert_eq!(harmless.retry(), Retry::Elsewhere);
    }

    #[test]
    fn a_stale_connection_needs_no_other_instance_and_a_failed_one_does() {
        let alone = Attempt {
            has_other: false,
            ..FAILED
        };
        assert_eq!(alone.retry(), Retry::GiveUp);
        let stale = Attempt {
            fault: Fault::StaleConnection,
            ..alone
        };
        assert_eq!(stale.retry(), Retry::Anew);
    }

    #[test]
    fn retries_end() {
        let last = Attempt {
            retries: RETRIES,
            ..FAILED
        };
        assert_eq!(last.retry(), Retry::GiveUp);
    }
}
