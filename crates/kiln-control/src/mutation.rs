//! Wrong controllers. Each has a fault that kiln once had, so that the simulator can be seen to catch it.

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A wrong planner.
    Plan(kiln_plan::Mutation),
    /// The clock stands still until the wall clock has caught up with what was journalled.
    FrozenClock,
    /// A stop that failed is not tried again.
    StopOnce,
    /// Where something is left that can't be removed, what the engine has seen is forgotten.
    LoseSeen,
    /// Each thing that happens puts off the next try to write the journal.
    StarveBacklog,
    /// A socket is closed only by the controller that opened it.
    LeakListeners,
    /// A counter that is late ends every wait for counters.
    SettleAll,
    /// Each refused route is every unconfirmed service's.
    BlameAll,
    /// A proxy that serves a newer table is given the same one for ever.
    NeverRaise,
}
