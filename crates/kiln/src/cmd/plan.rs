//! `kiln plan`: what would change, and why.

use crate::baking::{self, Baking};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
use crate::{args, definition, plan_text, rollout, settings, start};

pub(crate) fn run(args: args::Plan) -> Result<Exit, Failure> {
    settings::need_root("`kiln plan`")?;
    let root = settings::root(args.root)?;
    let definition = definition::read(args.definition.into())?.for_running()?;
    let client = Client::new(&root);
    // Before a bake that may take long: without a controller there is nothing to compare with.
    if !start::is_served(&client)? {
        return Err(Failure::NotRunning { root });
    }
    let audience = Audience::of(args.json.json);
    let interrupts = Interrupts::catch()?;
    let baking = Baking::new(&root, &definition, audience)?;
    let baked = interrupts.during(|| baking.used(), || start::left(&root, &client))?;
    let spec = baking::environment(&definition.spec, &baked);
    let plan = rollout::plan(&client, &spec)?;
    match audience {
        Audience::Program => output::json(&plan)?,
        Audience::Person => output::line(&plan_text::text(&plan))?,
    }
    Ok(if plan.changes.is_empty() {
        Exit::Done
    } else {
        Exit::Changes
    })
}
