//! `kiln apply`: bake, and make what runs what the definition says.

use crate::baking::{self, Baking};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::Audience;
use crate::{args, definition, plan_text, rollout, settings, start};

pub(crate) fn run(args: args::Apply) -> Result<Exit, Failure> {
    settings::need_root("`kiln apply`")?;
    let root = settings::root(args.root)?;
    let definition = definition::read(args.definition.into())?.for_running()?;
    let client = Client::new(&root);
    if !start::is_served(&client)? {
        return Err(Failure::NotRunning { root });
    }
    let audience = Audience::of(args.json.json);
    let interrupts = Interrupts::catch()?;
    let baking = Baking::new(&root, &definition, audience)?;
    let baked = interrupts.during(|| baking.used(), || start::left(&root, &client))?;
    let spec = baking::environment(&definition.spec, &baked);
    let plan = rollout::plan(&client, &spec)?;
    if !plan.changes.is_empty() {
        audience.progress(&plan_text::changes(&plan))?;
    }
    // Also without a change: the controller says what is so.
    let lines = client.post_lines("/v1/apply", &plan)?;
    rollout::report(&rollout::follow(lines, audience, &interrupts)?, audience)
}
