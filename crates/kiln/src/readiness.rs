//! Waits until services have the instances that they are to have.
//!
//! An apply that changes nothing is answered at once, also when all instances died a moment ago and are being
//! replaced: who asked for services that answer has to wait for them.

use std::time::{Duration, Instant};

use kiln_model::api::{InstanceState, ServiceStatus, Status};
use kiln_model::{EnvironmentSpec, ServiceSpec};

use crate::client::Client;
use crate::failure::Failure;
use crate::interrupt::{self, Interrupts};
use crate::output;

/// Besides the time that a service gives its instances to become ready: an instance that failed is replaced after a
/// pause, which grows to a minute.
const REPLACEMENT: Duration = Duration::from_secs(60);

/// Waits for every service of `spec`. Says which one it waits for once there is something to wait for.
pub(crate) fn wait(
    client: &Client,
    spec: &EnvironmentSpec,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    let path = format!("/v1/status?environment={}", spec.environment);
    let longest = spec
        .services
        .values()
        .map(|service| service.policy.progress_deadline)
        .max()
        .unwrap_or_default();
    let patience = longest + REPLACEMENT;
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let status: Status = client.get(&path)?;
        let lacking = spec.services.iter().find_map(|(name, wanted)| {
            let found = status.services.iter().find(|service| service.name == *name);
            let ready = found.map_or(0, ready);
            let replicas = replicas(wanted);
            (ready < replicas).then(|| format!("{name} ({ready} of {replicas} instances)"))
        });
        let Some(lacking) = lacking else {
            return Ok(());
        };
        if begun.elapsed() > patience {
            return Err(Failure::NotReady {
                what: lacking,
                seconds: patience.as_secs(),
            });
        }
        interrupts.check(|| {
            format!("{lacking} is not ready yet; kiln goes on with it, `kiln down` ends everything")
        })?;
        if lacking != told {
            output::line(&format!("waiting until it is ready: {lacking}"))?;
            told = lacking;
        }
        std::thread::sleep(interrupt::TURN);
    }
}

fn replicas(spec: &ServiceSpec) -> usize {
    usize::try_from(spec.policy.replicas).unwrap_or(usize::MAX)
}

/// Instances that requests go to.
fn ready(service: &ServiceStatus) -> usize {
    let Some(release) = &service.release else {
        return 0;
    };
    service
        .instances
        .iter()
        .filter(|instance| instance.release == release.number)
        .filter(|instance| instance.state == InstanceState::Ready)
        .count()
}
