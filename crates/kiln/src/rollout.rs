//! Asks the controller for something that takes time, shows how it goes, and says how it ended.

use std::time::{Duration, Instant};

use kiln_model::api::{Outcome, Progress, RolloutResult, Status};
use kiln_model::{EnvironmentSpec, Plan, Timestamp};

use crate::client::{self, Client, Lines, Next};
use crate::failure::{Exit, Failure};
use crate::interrupt::{self, Interrupts};
use crate::output::{self, Audience};
use crate::table;

pub(crate) fn plan(client: &Client, spec: &EnvironmentSpec) -> Result<Plan, Failure> {
    client.post("/v1/plan", spec)
}

/// Shows every line of `lines`, and gives the outcomes. The controller goes on with it after an interruption.
pub(crate) fn follow(
    client: &Client,
    mut lines: Lines,
    audience: Audience,
    interrupts: &Interrupts,
) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::new();
    let mut heard = Instant::now();
    loop {
        interrupts.check(|| {
            "kiln goes on with it; `kiln status` shows how far it is, `kiln down` ends everything"
                .to_owned()
        })?;
        match lines.next::<Progress>(interrupt::TURN)? {
            Next::Silence if heard.elapsed() < client::PATIENCE => {}
            // A rollout may be silent for as long as its deadlines allow; a controller that was stopped is silent for ever.
            Next::Silence => {
                if let Err(silent @ Failure::Silent { .. }) = client.get::<Status>("/v1/status") {
                    return Err(silent);
                }
                heard = Instant::now();
            }
            Next::End => return Ok(outcomes),
            Next::Line(Progress::Step {
                service,
                at: _,
                phase,
                message,
            }) => {
                // What is about no phase is about the service.
                let phase = if phase.is_empty() {
                    phase
                } else {
                    format!("{phase}: ")
                };
                audience.progress(&format!("{service}: {phase}{message}"))?;
            }
            Next::Line(Progress::Outcome { outcome }) => outcomes.push(outcome),
            Next::Line(Progress::Error { error }) => return Err(Failure::Api(error)),
        }
    }
}

/// Says how it ended: lines for a person, one JSON object for each service otherwise.
pub(crate) fn report(outcomes: &[Outcome], audience: Audience) -> Result<Exit, Failure> {
    for outcome in outcomes {
        match audience {
            Audience::Program => output::json(outcome)?,
            Audience::Person => output::line(&text(outcome, now()))?,
        }
    }
    Ok(exit(outcomes))
}

/// A failure weighs more than a return to the old release, and that more than success.
pub(crate) fn exit(outcomes: &[Outcome]) -> Exit {
    let results = || outcomes.iter().map(|outcome| outcome.result);
    if results().any(|result| result == RolloutResult::Failed) {
        Exit::Failed
    } else if results().any(|result| result == RolloutResult::RolledBack) {
        Exit::RolledBack
    } else {
        Exit::Done
    }
}

pub(crate) fn now() -> Timestamp {
    let since = kiln_fs::clock::wall();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn text(outcome: &Outcome, now: Timestamp) -> String {
    let Outcome {
        service,
        environment: _,
        from,
        to,
        result,
        reason,
        duration_ms,
        requests,
        phases,
        warm,
        url,
    } = outcome;
    let release = |number: &Option<kiln_model::ReleaseNumber>| match number {
        Some(number) => format!("{service}@{number}"),
        None => "nothing".to_owned(),
    };
    let took = table::duration(Duration::from_millis(*duration_ms));
    let mut lines = vec![match result {
        RolloutResult::Done => format!("{} → {}: done in {took}", release(from), release(to)),
        RolloutResult::Unchanged => format!("{}: unchanged", release(&to.or(*from))),
        RolloutResult::RolledBack if from == to => {
            format!("{}: its policy did not change ({took})", release(to))
        }
        RolloutResult::RolledBack => {
            format!(
                "{} → {}: failed; {} still has all traffic ({took})",
                release(from),
                release(to),
                release(from)
            )
        }
        RolloutResult::Failed => format!(
            "{}: failed after {took}, and there is no release to go back to",
            release(to)
        ),
        RolloutResult::Removed => format!("{service}: removed in {took}"),
    }];
    if let Some(reason) = reason {
        lines.extend(reason.lines().map(|line| format!("    {line}")));
    }
    let times: Vec<String> = phases
        .iter()
        .map(|time| {
            format!(
                "{} {}",
                time.phase,
                table::duration(Duration::from_micros(time.duration_us))
            )
        })
        .collect();
    if !times.is_empty() {
        lines.push(format!("    phases: {}", times.join(", ")));
    }
    if *result != RolloutResult::Unchanged {
        lines.push(format!(
            "    requests: {} served, {} failed",
            requests.served, requests.failed
        ));
    }
    if let Some(warm) = warm {
        let left = table::duration(warm.until.since(now));
        lines.push(format!(
            "    {service}@{} is kept warm for {left}: `kiln rollback {service}` goes back at once",
            warm.number
        ));
    }
    if let Some(url) = url
        && *result != RolloutResult::Removed
    {
        lines.push(format!("    {url}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use kiln_model::ReleaseNumber;
    use kiln_model::api::{PhaseTime, RequestCount, WarmStatus};

    use super::*;

    fn outcome(result: RolloutResult) -> Outcome {
        Outcome {
            service: "api".parse().unwrap(),
            environment: "dev".parse().unwrap(),
            from: Some(ReleaseNumber(1)),
            to: Some(ReleaseNumber(2)),
            result,
            reason: None,
            duration_ms: 1500,
            requests: RequestCount {
                served: 12,
                failed: 0,
            },
            phases: vec![],
            warm: None,
            url: None,
        }
    }

    #[test]
    fn the_worst_outcome_is_the_exit_code() {
        use RolloutResult::{Done, Failed, Removed, RolledBack, Unchanged};
        for (results, expected) in [
            (&[][..], Exit::Done),
            (&[Done, Unchanged, Removed][..], Exit::Done),
            (&[Done, RolledBack][..], Exit::RolledBack),
            (&[RolledBack, Failed, Done][..], Exit::Failed),
        ] {
            let outcomes: Vec<Outcome> = results.iter().map(|result| outcome(*result)).collect();
            assert_eq!(exit(&outcomes), expected, "{results:?}");
        }
    }

    #[test]
    fn the_end_says_times_requests_and_what_is_warm() {
        let mut done = outcome(RolloutResult::Done);
        done.phases = vec![
            PhaseTime {
                phase: "start".into(),
                duration_us: 1_200_000,
            },
            PhaseTime {
                phase: "switch".into(),
                duration_us: 900,
            },
        ];
        done.warm = Some(WarmStatus {
            number: ReleaseNumber(1),
            until: Timestamp(901_000),
        });
        done.url = Some("http://127.0.0.1:8080/".into());
        assert_eq!(
            text(&done, Timestamp(1000)),
            "api@1 → api@2: done in 1.50 s\n    phases: start 1.20 s, switch 900 µs\n    requests: 12 served, 0 failed\n    \
             api@1 is kept warm for 15 min 0 s: `kiln rollback api` goes back at once\n    http://127.0.0.1:8080/"
        );
        let mut removed = outcome(RolloutResult::Removed);
        (removed.from, removed.to) = (None, None);
        removed.url.clone_from(&done.url);
        assert_eq!(
            text(&removed, Timestamp(0)),
            "api: removed in 1.50 s\n    requests: 12 served, 0 failed"
        );
        let mut back = outcome(RolloutResult::RolledBack);
        back.reason = Some("never ready\nTraceback".into());
        assert_eq!(
            text(&back, Timestamp(0)),
            "api@1 → api@2: failed; api@1 still has all traffic (1.50 s)\n    never ready\n    Traceback\n    \
             requests: 12 served, 0 failed"
        );
    }
}
