//! The words of the API: what a person reads of facts. Nothing else in the controller makes sentences of them.

use kiln_control::Refused;
use kiln_model::api::{ApiError, ErrorCode, RolloutResult};
use kiln_model::{ExitReason, InstanceEnd, Probed, Unready, Waiting, WaitsOn, Why};
use kiln_plan::{Event, Notice, ProbeKind, Refusal, RolloutEnd};

/// What a person reads of an event that somebody asked for, or that explains what follows; `None`: nothing.
pub(crate) fn event(event: &Event) -> Option<String> {
    match event {
        Event::Deploy { origin, .. } => Some(format!("apply of {}", origin.tag)),
        Event::Rollback { to: Some(number) } => Some(format!("rollback to release {number}")),
        Event::Rollback { to: None } => Some("rollback".to_owned()),
        Event::Remove => Some("removal".to_owned()),
        Event::Probed {
            instance,
            probe: ProbeKind::Live,
            passes: false,
        } => Some(format!("instance {instance} lives no more")),
        Event::SetPolicy { .. }
        | Event::Started { .. }
        | Event::StartFailed { .. }
        | Event::Exited { .. }
        | Event::Removed { .. }
        | Event::Probed { .. }
        | Event::Confirmed { .. }
        | Event::RouteRefused { .. }
        | Event::Drained { .. }
        | Event::Timer => None,
    }
}

/// One line of what the planner noticed.
pub(crate) fn notice(notice: &Notice) -> String {
    match notice {
        Notice::RolloutBegan {
            from: Some(from),
            to,
        } => format!("rollout from release {from} to release {to}"),
        Notice::RolloutBegan { from: None, to } => format!("first rollout, to release {to}"),
        Notice::PhaseEntered { wait } => format!("{}: {}", wait.phase.name(), waiting(wait)),
        Notice::InstanceFailed { instance, end, .. } => {
            format!("instance {instance}: {}", instance_end(end))
        }
        Notice::Switched { to, instances } => {
            let s = if *instances == 1 { "" } else { "s" };
            format!("all traffic is with release {to} ({instances} instance{s})")
        }
        Notice::WarmUntil { release, until } => {
            format!("release {release} is kept warm until {}", until.rfc3339())
        }
        Notice::WarmRetired { release } => format!("release {release} is warm no more"),
        Notice::PolicyChanged => "the policy changed".to_owned(),
        Notice::PolicyKept { why: reason } => {
            format!("the policy did not change: {}", why(reason))
        }
        Notice::RolloutEnded { end } => rollout_end(end),
        Notice::RouteRefused { reason } => format!("a proxy refused the route: {reason}"),
        Notice::Gone => "nothing of it runs any more".to_owned(),
    }
}

fn rollout_end(end: &RolloutEnd) -> String {
    let RolloutEnd {
        from: _,
        to,
        result: ended,
        why: reason,
    } = end;
    let ended = result(*ended);
    match reason {
        Some(reason) => format!("rollout to release {to} ended: {ended}: {}", why(reason)),
        None => format!("rollout to release {to} ended: {ended}"),
    }
}

fn result(result: RolloutResult) -> &'static str {
    match result {
        RolloutResult::Done => "done",
        RolloutResult::Unchanged => "unchanged",
        RolloutResult::RolledBack => "rolled back",
        RolloutResult::Failed => "failed",
        RolloutResult::Removed => "removed",
    }
}

/// Why something did not end as it was asked for.
pub(crate) fn why(why: &Why) -> String {
    match why {
        Why::NotReady {
            release,
            within,
            unready,
        } => format!(
            "release {release} was not ready within {} s: {}",
            within.as_secs_f32(),
            set_unready(unready)
        ),
        Why::InstanceEnded {
            instance,
            end,
            last_lines,
        } => {
            let mut text = format!("instance {instance}: {}", instance_end(end));
            if !last_lines.is_empty() {
                text.push_str("; its last lines:\n");
                text.push_str(&last_lines.join("\n"));
            }
            text
        }
        Why::LostReadiness { release, unready } => format!(
            "release {release} stopped being ready after the switch: {}",
            set_unready(unready)
        ),
        Why::Incomplete { release, unready } => format!(
            "release {release} was not complete again in time: {}",
            set_unready(unready)
        ),
        Why::RouteRefused { detail } => format!("the proxy refused the route: {detail}"),
        Why::Asked => "a rollback was asked for".to_owned(),
        Why::Superseded => "a newer change took its place".to_owned(),
        Why::ProbesNotPassing { within, unready } => format!(
            "its probes did not pass on the running instances within {} s: {}",
            within.as_secs_f32(),
            set_unready(unready)
        ),
        Why::Words { text } => text.clone(),
    }
}

fn set_unready(unready: &Unready) -> String {
    match unready {
        Unready::NotSoaked => {
            "its instances were ready, but not yet for as long as `soak` asks".to_owned()
        }
        Unready::Ended => "its instances had ended".to_owned(),
        Unready::Starting { count } => {
            format!("{count} of its instances were still being started")
        }
        Unready::NotPassing { count, probe } => {
            format!("{count} of its instances ran, but {}", not_passing(probe))
        }
    }
}

fn not_passing(probe: &Probed) -> String {
    match probe {
        Probed::Connect => "the port did not accept a connection".to_owned(),
        Probed::Http { path, timeout } => format!(
            "`GET {path}` did not answer 2xx within {} ms",
            timeout.as_millis()
        ),
    }
}

/// How an instance came to its end.
pub(crate) fn instance_end(end: &InstanceEnd) -> String {
    match end {
        InstanceEnd::Exit { reason } => exit(reason),
        InstanceEnd::NotStarted { failure } => failure.detail.clone(),
        InstanceEnd::Words { text } => text.clone(),
    }
}

fn exit(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Exited { code } => format!("it exited with code {code}"),
        ExitReason::Signalled { signal } => format!("it was ended by signal {signal}"),
        ExitReason::OutOfMemory { limit: Some(limit) } => format!(
            "it needed more memory than its limit of {limit} bytes: raise `resources {{ memory }}`, or make it need less"
        ),
        ExitReason::OutOfMemory { limit: None } => "the machine ran out of memory".to_owned(),
        ExitReason::Lost => "its processes are gone".to_owned(),
    }
}

/// What is waited for.
pub(crate) fn waiting(wait: &Waiting) -> String {
    let Waiting {
        phase: _,
        on,
        refused,
    } = wait;
    let on = waits_on(on);
    match refused {
        Some(reason) => {
            format!("{on}; a proxy refused the last route and is asked again: {reason}")
        }
        None => on,
    }
}

fn waits_on(on: &WaitsOn) -> String {
    match on {
        WaitsOn::Ready {
            release,
            ready,
            wanted,
        } => format!("{ready} of {wanted} instances of release {release} are ready"),
        WaitsOn::Confirmation { release } => {
            format!("every proxy to confirm the switch to release {release}")
        }
        WaitsOn::Watch { release } => format!("release {release} to hold under traffic"),
        WaitsOn::Return {
            to: Some(to),
            why: reason,
            ..
        } => format!("all traffic to be with release {to} again: {}", why(reason)),
        WaitsOn::Return {
            from,
            to: None,
            why: reason,
        } => format!("release {from} to end: {}", why(reason)),
        WaitsOn::Probes { passed, wanted } => {
            format!("the new probes to pass: {passed} of {wanted} instances")
        }
        WaitsOn::PolicyRoutes => "every proxy to confirm the routes of the new policy".to_owned(),
        WaitsOn::Removal { instances } => format!("{instances} instances to end"),
        WaitsOn::Words { text } => text.clone(),
    }
}

/// Why a call is not carried out, and what to do.
pub(crate) fn refused(refused: &Refused) -> ApiError {
    let (code, message) = match refused {
        Refused::OtherProject {
            service,
            theirs,
            ours,
        } => (
            ErrorCode::Precondition,
            format!(
                "the service `{service}` belongs to project `{theirs}`, and this definition is of project `{ours}`: \
                 give the service another name, or use another environment"
            ),
        ),
        Refused::Stale {
            environment,
            parent,
            current,
        } => (
            ErrorCode::StalePlan,
            format!(
                "the plan was made from state {parent}, and `{environment}` is at state {current} by now: plan again"
            ),
        ),
        Refused::Refusal {
            service,
            refusal: reason,
        } => {
            let (code, reason) = refusal(reason);
            (code, format!("{service}: {reason}"))
        }
        Refused::NotFound { service } => (
            ErrorCode::NotFound,
            format!(
                "there is no service `{}` in environment `{}`: `kiln status` lists what there is",
                service.service, service.environment
            ),
        ),
        Refused::Contradiction { service } => (
            ErrorCode::BadRequest,
            format!("the plan contradicts itself about `{service}`: plan again"),
        ),
        Refused::ListenTaken {
            address,
            service,
            by,
        } => (
            ErrorCode::Precondition,
            format!(
                "`{service}` wants to listen on {address}, where `{by}` listens: give one of them another `listen`"
            ),
        ),
        Refused::Unknown { service, members } => (
            ErrorCode::Precondition,
            format!(
                "`{service}` has {}, which this controller does not know: the command line is newer; \
                 end the controller with `kiln down` and start the newer one with `kiln up`",
                members.join(", ")
            ),
        ),
        Refused::Prepare(error) => return error.clone(),
        Refused::Journal { problem } => (ErrorCode::Unavailable, problem.clone()),
    };
    ApiError { code, message }
}

fn refusal(refusal: &Refusal) -> (ErrorCode, String) {
    match refusal {
        Refusal::Busy { to } => (
            ErrorCode::Busy,
            format!(
                "a rollout to release {to} is running: wait for its end (`kiln status`), or turn it back with `kiln rollback`"
            ),
        ),
        Refusal::NoPrevious => (
            ErrorCode::Precondition,
            "no release was current before this one, so there is nothing to go back to".to_owned(),
        ),
        Refusal::UnknownRelease { number } => (
            ErrorCode::NotFound,
            format!("there is no release {number}: `kiln history` lists the releases there are"),
        ),
        Refusal::AlreadyCurrent { number } => (
            ErrorCode::Precondition,
            format!("release {number} already has the traffic"),
        ),
        Refusal::Gone => (
            ErrorCode::NotFound,
            "the service was removed: apply its definition again".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{ReleaseNumber, RolloutPhase};
    use std::time::Duration;

    #[test]
    fn reasons_say_what_was_asked_and_what_to_do() {
        let unready = Unready::NotPassing {
            count: 2,
            probe: Probed::Http {
                path: "/ready".to_owned(),
                timeout: Duration::from_millis(500),
            },
        };
        let text = why(&Why::NotReady {
            release: ReleaseNumber(2),
            within: Duration::from_secs(30),
            unready,
        });
        assert_eq!(
            text,
            "release 2 was not ready within 30 s: 2 of its instances ran, but `GET /ready` did not answer 2xx within 500 ms"
        );
        let reason = ExitReason::OutOfMemory {
            limit: Some(1 << 20),
        };
        let text = instance_end(&InstanceEnd::Exit { reason });
        assert!(
            text.contains("1048576 bytes: raise `resources { memory }`"),
            "{text}"
        );
    }

    #[test]
    fn what_is_waited_for_names_the_proxy_that_refuses() {
        let wait = Waiting {
            phase: RolloutPhase::Switch,
            on: WaitsOn::Confirmation {
                release: ReleaseNumber(2),
            },
            refused: Some("the disk is full".to_owned()),
        };
        let text = waiting(&wait);
        assert!(text.starts_with("every proxy to confirm the switch to release 2"));
        assert!(text.ends_with("is asked again: the disk is full"), "{text}");
    }
}
