//! `kiln apply`: bake, and make what runs what the definition says.

use crate::failure::{Exit, Failure};
use crate::planned::{self, Planned};
use crate::{args, plan_text, rollout};

pub(crate) fn run(args: args::Apply) -> Result<Exit, Failure> {
    let Planned {
        client,
        audience,
        interrupts,
        plan,
    } = planned::prepare("`kiln apply`", args.definition, args.root, args.json)?;
    if !plan.changes.is_empty() {
        audience.progress(&plan_text::changes(&plan))?;
    }
    // Also without a change: the controller says what is so.
    let lines = client.post_lines("/v1/apply", &plan)?;
    let outcomes = rollout::follow(&client, lines, audience, &interrupts)?;
    rollout::report(&outcomes, audience)
}
