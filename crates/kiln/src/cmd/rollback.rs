//! `kiln rollback`: back to an earlier release.

use kiln_model::ReleaseNumber;
use kiln_model::api::RollbackRequest;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::Audience;
use crate::{args, rollout, settings};

pub(crate) fn run(args: args::Rollback) -> Result<Exit, Failure> {
    let args::Rollback {
        service,
        to,
        environment,
        root,
        json,
    } = args;
    let client = Client::new(&settings::root(root)?);
    let audience = Audience::of(json.json);
    let request = RollbackRequest {
        environment: environment.env,
        service,
        to: to.map(ReleaseNumber),
    };
    let interrupts = Interrupts::catch()?;
    let lines = client.post_lines("/v1/rollback", &request)?;
    let outcomes = rollout::follow(&client, lines, audience, &interrupts)?;
    rollout::report(&outcomes, audience)
}
