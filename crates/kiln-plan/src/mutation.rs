//! Wrong planners. Each breaks one invariant on purpose, so that the simulator can be seen to catch it.

/// What is done wrongly, by the number of the invariant that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// 1: the switch does not wait for the new set to be ready.
    SwitchBeforeReady,
    /// 1: a policy that listens elsewhere changes no route.
    ForgetListen,
    /// 2: the old set is stopped as soon as the switch is sent.
    StopOldAtSwitch,
    /// 2: every set that was current is kept running, not the last one alone.
    KeepEverySet,
    /// 3: an instance is stopped when its route is confirmed, whatever is in flight.
    StopBeforeDrained,
    /// 4: a failed rollout keeps the traffic where it is.
    NeverReturn,
    /// 4: a rollout that is turned back leaves its policy behind.
    KeepNewPolicy,
    /// 5: the warm set is not replaced when it dies.
    ForgetWarm,
    /// 6: a set that is never ready is waited for without end.
    NoDeadline,
    /// 7: outstanding actions are forgotten, so a restart issues none again.
    ForgetOutstanding,
    /// 9: a rollout waits for the old set to be healthy.
    WaitForOldSet,
}
