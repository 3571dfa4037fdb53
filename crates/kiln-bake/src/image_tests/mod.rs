//! An image's tests: run against it as it will run, before it gets its tag.
//!
//! Files and packages are looked up in the mounted image. Commands run in a container that is made as an instance's is, with a
//! network of its own that leads nowhere; HTTP and ports are asked from inside that network. A test that passed is known by the
//! digests of image and test and isn't run again; one that failed is.

mod command;
mod files;
mod http;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use kiln_engine::Overlay;
use kiln_model::{Digest, TestSpec, TextCheck, canonical_json};
use kiln_oci::{ImageConfig, Layer, Store};

use crate::error::BakeError;
use crate::progress::{BakeProgress, StepReport};
use crate::scratch::Scratch;

/// Changed whenever a test that passed could fail now.
const FORMAT: u32 = 1;
/// Of what a test's programs say, the rest is forgotten: a log, and what is compared, are read by people.
const SAID_MAX: usize = 1 << 20;
/// Of images whose tests failed, the youngest.
const LOGS_KEPT: usize = 20;

/// What is tested.
pub(crate) struct Subject<'a> {
    pub(crate) store: &'a Store,
    /// For what is made on the way, and for the log.
    pub(crate) work: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) digest: Digest,
    pub(crate) config: &'a ImageConfig,
    pub(crate) layers: &'a [Layer],
}

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

/// What is wrong with a text, as in "the body …".
fn text_failures<'a>(what: &str, text: &'a str, check: &'a TextCheck) -> Vec<String> {
    let TextCheck {
        contains,
        matches,
        equals,
    } = check;
    // Commands end what they say with an end of line, which no one means to ask for.
    let bare = |text: &'a str| text.strip_suffix('\n').unwrap_or(text);
    let mut failures = Vec::new();
    for part in contains.iter().filter(|part| !text.contains(*part)) {
        failures.push(format!(
            "{what} does not contain {part:?}: it is {}",
            shown(text)
        ));
    }
    for pattern in matches {
        // One that is none was refused with the definition.
        let found = regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(bare(text)));
        if !found {
            failures.push(format!(
                "{what} does not match {pattern:?}: it is {}",
                shown(text)
            ));
        }
    }
    if let Some(expected) = equals
        && bare(expected) != bare(text)
    {
        failures.push(format!(
            "{what} is {}, and {expected:?} is expected",
            shown(text)
        ));
    }
    failures
}

/// As much of a text as an error has room for.
fn shown(text: &str) -> String {
    const ROOM: usize = 300;
    match text.char_indices().nth(ROOM) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// What the tests of one image said, in one file, of which there is none when all of them passed.
struct Log {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl Log {
    fn new(subject: &Subject<'_>) -> Self {
        let name = format!(
            "{}-{}.log",
            subject.name.replace(['/', ':'], "-"),
            subject.digest.short()
        );
        let path = subject.work.join("tests").join(name);
        Self {
            path,
            file: Mutex::new(None),
        }
    }

    /// A log that can't be written is no reason to fail: the error says what matters.
    fn write(&self, bytes: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            if let Some(folder) = self.path.parent() {
                let _ = fs::create_dir_all(folder);
                forget(folder, LOGS_KEPT - 1);
            }
            *file = File::create(&self.path).ok();
        }
        if let Some(file) = &mut *file {
            let _ = file.write_all(bytes);
        }
    }

    fn line(&self, line: &str) {
        self.write(format!("{line}\n").as_bytes());
    }

    fn discard(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes all logs but the youngest: nobody looks for those of images that failed long ago.
fn forget(folder: &Path, kept: usize) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut logs: Vec<(SystemTime, PathBuf)> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    logs.sort();
    for (_, path) in logs.iter().rev().skip(kept) {
        // One that stays is in the way of nothing.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_youngest_logs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("a.log", 3), ("b.log", 1), ("c.log", 2), ("d.txt", 9)] {
            let file = File::create(folder.path().join(name)).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age * 1000);
            file.set_modified(then).unwrap();
        }
        forget(folder.path(), 2);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["b.log", "c.log", "d.txt"]);
    }

    #[test]
    fn a_text_is_what_a_test_says_of_it() {
        let check = |contains: &[&str], matches: &[&str], equals: Option<&str>| TextCheck {
            contains: contains.iter().map(|part| (*part).to_owned()).collect(),
            matches: matches.iter().map(|part| (*part).to_owned()).collect(),
            equals: equals.map(str::to_owned),
        };
        let right = [
            check(&[], &[], None),
            check(&["ell", "hello"], &["^h.l+o$"], Some("hello")),
            check(&[], &[], Some("hello\n")),
        ];
        for right in &right {
            assert_eq!(
                text_failures("it", "hello\n", &right.clone()),
                Vec::<String>::new()
            );
        }
        let wrong = check(&["x", "h"], &["^e"], Some("hello "));
        let failures = text_failures("the body", "hello", &wrong);
        assert_eq!(
            failures,
            [
                "the body does not contain \"x\": it is \"hello\"",
                "the body does not match \"^e\": it is \"hello\"",
                "the body is \"hello\", and \"hello \" is expected",
            ]
        );
        assert!(shown(&"ä".repeat(1000)).ends_with("ä\"…"));
    }
}
