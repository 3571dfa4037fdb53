//! What the image's own command answers, asked from inside its network, again until it is right or the time is over.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use kiln_engine::sandbox::{self, Running, SandboxError, SandboxExit};
use kiln_model::{HttpCheck, TestSpec};

use super::client::get;
use super::command;
use super::log::Log;
use super::subject::{SAID_MAX, Subject};
use super::text::text_failures;
use crate::error::BakeError;

/// Not the address that `localhost` is: what listens on that alone is not reached by anybody when it runs.
const ASKED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const PAUSE: Duration = Duration::from_millis(25);

enum Question<'a> {
    Http(&'a HttpCheck),
    Port(u16),
}

/// What is wrong with one answer.
enum Wrong {
    Refused(io::Error),
    Answer(Vec<String>),
}

pub(super) fn check(
    subject: &Subject<'_>,
    test: &TestSpec,
    lowers: &[PathBuf],
    work: &Path,
    log: &Log,
) -> Result<Vec<String>, BakeError> {
    let run = &subject.config.config;
    let argv: Vec<String> = run.entrypoint.iter().chain(&run.cmd).cloned().collect();
    let what = argv.join(" ");
    log.line(&format!("-- {what}"));
    let spec = command::container(subject, test, argv, None, lowers, work);
    let said = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        // The container is tied to the thread that made it.
        let server = scope.spawn(|| {
            let began = move |running| {
                let _ = tell.send(running);
            };
            let stop = || over.load(Ordering::Relaxed);
            sandbox::run_watched(&spec, began, &stop, &mut |_, bytes| {
                let mut kept = said.lock().unwrap_or_else(PoisonError::into_inner);
                let room = SAID_MAX.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                log.write(&bytes[..room]);
            })
        });
        let mut failures = Vec::new();
        let mut ended_early = false;
        if let Ok(running) = told.recv() {
            let deadline = Instant::now() + test.timeout;
            let http = test.http.iter().map(Question::Http);
            let ports = test.ports.iter().copied().map(Question::Port);
            let mut questions = http.chain(ports).peekable();
            while let Some(question) = questions.next() {
                let is_over = || server.is_finished();
                let found = until_right(&running, &question, test, deadline, &is_over);
                // One that ends after its last right answer has answered all.
                let is_asked = found.is_empty() && questions.peek().is_none();
                ended_early = !is_asked && server.is_finished();
                if ended_early {
                    break;
                }
                failures.extend(found);
            }
        }
        over.store(true, Ordering::Relaxed);
        let ended = match server.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match ended {
            Ok(_) if !ended_early => Ok(failures),
            Ok(exit) => {
                let said = said.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(vec![early(
                    &what,
                    &exit,
                    test,
                    &String::from_utf8_lossy(&said),
                )])
            }
            Err(SandboxError::Start(reason)) => Ok(vec![format!("`{what}`: {reason}")]),
            Err(source) => Err(BakeError::Sandbox {
                image: subject.name.to_owned(),
                step: format!("test \"{}\"", test.name),
                source,
            }),
        }
    })
}

fn early(what: &str, exit: &SandboxExit, test: &TestSpec, said: &str) -> String {
    let ending = command::ending(exit, test);
    let lines: Vec<&str> = said.trim_end().lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    let colon = if last.is_empty() { "" } else { ":\n" };
    format!("the image's command, `{what}`, {ending} before all was asked{colon}{last}")
}

fn until_right(
    running: &Running,
    question: &Question<'_>,
    test: &TestSpec,
    deadline: Instant,
    is_over: &dyn Fn() -> bool,
) -> Vec<String> {
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(PAUSE);
        let wrong = match ask(running, question, test, left) {
            Ok(()) => return Vec::new(),
            Err(wrong) => wrong,
        };
        if is_over() || Instant::now() >= deadline {
            let waited = test.timeout.as_millis();
            return match wrong {
                Wrong::Answer(failures) => failures,
                Wrong::Refused(error) => vec![format!(
                    "{}: {error}, for {waited} ms{}",
                    name(question, test),
                    hint(running, question, test)
                )],
            };
        }
        std::thread::sleep(PAUSE);
    }
}

fn port(question: &Question<'_>, test: &TestSpec) -> u16 {
    match question {
        // The definition is refused where neither has one.
        Question::Http(http) => http.port.or(test.port).unwrap_or(80),
        Question::Port(port) => *port,
    }
}

fn name(question: &Question<'_>, test: &TestSpec) -> String {
    let port = port(question, test);
    match question {
        Question::Http(http) => format!("GET {} on port {port}", http.path),
        Question::Port(_) => format!("port {port}"),
    }
}

fn hint(running: &Running, question: &Question<'_>, test: &TestSpec) -> &'static str {
    let address = (Ipv4Addr::LOCALHOST, port(question, test)).into();
    match running.connect(address, Duration::from_secs(1)) {
        Ok(_) => {
            ". It listens on 127.0.0.1 alone, where nobody else reaches it: let it listen on 0.0.0.0"
        }
        Err(_) => "",
    }
}

fn ask(
    running: &Running,
    question: &Question<'_>,
    test: &TestSpec,
    left: Duration,
) -> Result<(), Wrong> {
    let address: SocketAddr = (ASKED, port(question, test)).into();
    let stream = running.connect(address, left).map_err(Wrong::Refused)?;
    let Question::Http(http) = question else {
        return Ok(());
    };
    let name = name(question, test);
    let answer = get(stream, &http.path, address.port(), left)
        .map_err(|error| Wrong::Answer(vec![format!("{name}: {error}")]))?;
    let mut failures = Vec::new();
    if answer.status != http.status {
        failures.push(format!(
            "{name}: the status is {}, and {} is expected",
            answer.status, http.status
        ));
    }
    for (header, wanted) in &http.headers {
        let named = answer.headers.iter();
        let mut named = named.filter(|(name, _)| name.eq_ignore_ascii_case(header));
        let found: Vec<&str> = named.by_ref().map(|(_, value)| value.as_str()).collect();
        if !found.contains(&wanted.as_str()) {
            let found = match found.as_slice() {
                [] => "is not there".to_owned(),
                found => format!("is {:?}", found.join(", ")),
            };
            failures.push(format!(
                "{name}: the header {header} {found}, and {wanted:?} is expected"
            ));
        }
    }
    failures.extend(text_failures(
        &format!("{name}: the body"),
        &answer.body,
        &http.body,
    ));
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Wrong::Answer(failures))
    }
}
