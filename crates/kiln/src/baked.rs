//! What is said of an image once it is baked, of a definition or of a Dockerfile, and writing it out.

use std::time::{Duration, Instant};

use kiln_bake::StepReport;
use kiln_model::Digest;
use kiln_oci::{Output, Store};

use crate::failure::Failure;
use crate::progress::Reporting;
use crate::table;

/// Tells that an image is baked.
pub(crate) fn tell(
    what: &str,
    digest: &Digest,
    steps: &[StepReport],
    reporting: Reporting,
) -> Result<(), Failure> {
    let cached = steps.iter().filter(|step| step.cached).count();
    let took = Duration::from_millis(steps.iter().map(|step| step.duration_ms).sum());
    reporting.line(&format!(
        "{what} ({}), {cached} of {} steps from the cache, {}",
        digest.short(),
        steps.len(),
        table::duration(took)
    ))
}

/// Writes an image out, and tells it of `name`.
pub(crate) fn write_out(
    store: &Store,
    (digest, tag): (&Digest, &str),
    name: &str,
    output: &Output,
    reporting: Reporting,
) -> Result<(), Failure> {
    let begun = Instant::now();
    store.export(digest, tag, output)?;
    reporting.line(&format!(
        "{name}: written to {}, {}",
        output.path().display(),
        table::duration(begun.elapsed())
    ))
}
