//! `kiln down`: everything of the root stops; the store and the journal stay.

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::{args, output, settings, start};

pub(crate) fn run(args: args::Down) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let client = Client::new(&root);
    if !start::is_served(&client)? {
        if !start::leftovers(&root) {
            output::line(&format!("nothing runs on {}", root.display()))?;
            return Ok(Exit::Done);
        }
        // Instances outlive a controller: only a controller can end them in order.
        start::ensure(&root, &client)?;
    }
    start::end(&root, &client, &Interrupts::catch()?)?;
    output::line(&format!(
        "nothing runs on {} any more; the store and the journal stay",
        root.display()
    ))?;
    Ok(Exit::Done)
}
