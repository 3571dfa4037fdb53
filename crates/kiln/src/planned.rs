//! What `kiln plan` and `kiln apply` begin with: the definition baked, and its plan asked of the controller.

use kiln_model::Plan;

use crate::baking::{self, Baking};
use crate::client::Client;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Audience;
use crate::{args, definition, rollout, settings, start};

pub(crate) struct Planned {
    pub(crate) client: Client,
    pub(crate) audience: Audience,
    pub(crate) interrupts: Interrupts,
    pub(crate) plan: Plan,
}

/// `command`: as in "`kiln plan`".
pub(crate) fn prepare(
    command: &'static str,
    definition: args::Definition,
    root: args::Root,
    json: args::Json,
) -> Result<Planned, Failure> {
    settings::need_root(command)?;
    let root = settings::root(root)?;
    let definition = definition::read(definition.into())?.for_running()?;
    let client = Client::new(&root);
    // Before a bake that may take long: without a controller there is nothing to compare with.
    if !start::is_served(&client)? {
        return Err(Failure::NotRunning { root });
    }
    let audience = Audience::of(json.json);
    let interrupts = Interrupts::catch()?;
    let baking = Baking::new(&root, &definition, audience)?;
    let baked = interrupts.during(|| baking.used(), || start::left(&root, &client))?;
    let spec = baking::environment(&definition.spec, &baked);
    let plan = rollout::plan(&client, &spec)?;
    Ok(Planned {
        client,
        audience,
        interrupts,
        plan,
    })
}
