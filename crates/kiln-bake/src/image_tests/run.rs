use std::time::Instant;

use kiln_engine::Overlay;
use kiln_model::{Digest, TestSpec, canonical_json};

use super::log::Log;
use super::subject::Subject;
use super::{command, files, http};
use crate::error::BakeError;
use crate::progress::{BakeProgress, StepReport};
use crate::step::scratch::Scratch;

/// Changed whenever a test that passed could fail now.
const FORMAT: u32 = 1;
/// A test that passed.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) name: String,
    /// Of the test itself.
    pub(crate) digest: Digest,
}

/// Runs all of them; when one fails, the error tells of each that did.
pub(crate) fn run(
    subject: &Subject<'_>,
    tests: &[TestSpec],
    progress: &mut dyn FnMut(BakeProgress),
) -> Result<(Vec<StepReport>, Vec<Passed>), BakeError> {
    let mut log = Log::new(subject);
    let (mut reports, mut passed, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for test in tests {
        let began = Instant::now();
        let digest = Digest::of(&canonical_json(test)?);
        let key = Digest::of(&canonical_json(&("test", FORMAT, subject.digest, digest))?);
        let cached = subject.store.cache_get(&key).is_some();
        let name = format!("test \"{}\"", test.name);
        progress(BakeProgress::Step {
            name: name.clone(),
            cached,
        });
        let failed = if cached {
            Vec::new()
        } else {
            log.line(&format!("== {name}"));
            one(subject, test, &log)?
        };
        if failed.is_empty() {
            if !cached {
                subject.store.cache_put(&key, b"")?;
            }
            passed.push(Passed {
                name: test.name.clone(),
                digest,
            });
        }
        for failure in failed {
            log.line(&format!("-- failed: {failure}"));
            failures.push((name.clone(), failure));
        }
        let report = StepReport {
            name,
            cached,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            key: None,
            reasons: Vec::new(),
        };
        progress(BakeProgress::Ended(report.clone()));
        reports.push(report);
    }
    if failures.is_empty() {
        log.discard();
        return Ok((reports, passed));
    }
    let lines = failures
        .iter()
        .map(|(name, failure)| format!("  {name}: {}", failure.replace('\n', "\n    ")));
    Err(BakeError::Tests {
        image: subject.name.to_owned(),
        failed: tests.len() - passed.len(),
        of: tests.len(),
        failures: lines.collect::<Vec<_>>().join("\n"),
        log: log.path,
    })
}

/// What is wrong with the image, each in a sentence.
fn one(subject: &Subject<'_>, test: &TestSpec, log: &Log) -> Result<Vec<String>, BakeError> {
    let scratch = Scratch::new(subject.work)?;
    let lowers = subject.store.lowers(subject.layers)?;
    let mut failures = {
        let view = Overlay::mount(&lowers, &scratch.folder("look")?)
            .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
        files::check(view.path(), test).map_err(BakeError::View)?
    };
    for (index, check) in test.commands.iter().enumerate() {
        let work = scratch.folder(&format!("command{index}"))?;
        failures.extend(command::check(subject, test, check, &lowers, &work, log)?);
    }
    if !(test.http.is_empty() && test.ports.is_empty()) {
        let work = scratch.folder("server")?;
        failures.extend(http::check(subject, test, &lowers, &work, log)?);
    }
    Ok(failures)
}
