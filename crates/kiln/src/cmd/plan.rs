//! `kiln plan`: what would change, and why.

use crate::failure::{Exit, Failure};
use crate::output::{self, Audience};
use crate::planned;
use crate::{args, plan_text};

pub(crate) fn run(args: args::Plan) -> Result<Exit, Failure> {
    let planned = planned::prepare("`kiln plan`", args.definition, args.root, args.json)?;
    match planned.audience {
        Audience::Program => output::json(&planned.plan)?,
        Audience::Person => output::line(&plan_text::text(&planned.plan))?,
    }
    Ok(if planned.plan.changes.is_empty() {
        Exit::Done
    } else {
        Exit::Changes
    })
}
