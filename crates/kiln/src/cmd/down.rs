//! `kiln down`: everything of the root stops; the store and the journal stay.

use std::path::Path;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::{args, output, processes, settings, start};

pub(crate) fn run(args: args::Down) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let client = Client::new(&root);
    if !start::leftovers(&root) && !start::is_served(&client)? {
        output::line(&format!("nothing runs on {}", root.display()))?;
        return Ok(Exit::Done);
    }
    let interrupts = Interrupts::catch()?;
    match end(&root, &client, &interrupts) {
        // One of its processes does not do what it is asked. Others take its place, and end everything in order.
        Err(
            failure @ (Failure::Silent { .. } | Failure::NotEnded { .. } | Failure::Start { .. }),
        ) => {
            output::warning(&format!(
                "{failure}: kiln is killed and started again, to end what runs in order"
            ));
            processes::end(&root, processes::holders(&root)?)?;
            end(&root, &client, &interrupts)?;
        }
        ended => ended?,
    }
    output::line(&format!(
        "nothing runs on {} any more; the store and the journal stay",
        root.display()
    ))?;
    Ok(Exit::Done)
}

fn end(root: &Path, client: &Client, interrupts: &Interrupts) -> Result<(), Failure> {
    // Instances outlive a controller: only a controller can end them in order.
    start::ensure(root, client)?;
    start::end(root, client, interrupts)
}
