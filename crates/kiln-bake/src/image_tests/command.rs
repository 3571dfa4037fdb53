//! A command that runs in the image instead of its own.

use std::path::{Path, PathBuf};

use kiln_engine::TmpfsSpec;
use kiln_engine::sandbox::{self, SandboxExit, SandboxNetwork, SandboxSpec, Stream};
use kiln_model::{CommandCheck, TestSpec};

use super::log::Log;
use super::subject::{SAID_MAX, Subject};
use super::text::text_failures;
use crate::error::BakeError;
use crate::step::limits;

/// The image as an instance of it has it, with this command.
pub(super) fn container(
    subject: &Subject<'_>,
    test: &TestSpec,
    argv: Vec<String>,
    user: Option<&str>,
    lowers: &[PathBuf],
    work: &Path,
) -> SandboxSpec {
    let run = &subject.config.config;
    let mut env: Vec<(String, String)> = run
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let port = test.port.map(|port| ("PORT".to_owned(), port.to_string()));
    for (name, value) in port.into_iter().chain(test.env.clone()) {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    let tmpfs = test.tmpfs.iter().map(|(path, tmpfs)| TmpfsSpec {
        path: path.clone(),
        size: tmpfs.size,
    });
    SandboxSpec {
        lowers: lowers.to_vec(),
        upper: work.join("upper"),
        work: work.to_owned(),
        argv,
        env,
        cwd: run.working_dir.clone(),
        user: user.unwrap_or(&run.user).to_owned(),
        hostname: "kiln".to_owned(),
        mounts: Vec::new(),
        network: SandboxNetwork::None,
        privileged: false,
        memory: limits::memory(),
        pids: Some(limits::PROCESSES),
        time_limit: None,
        as_instance: Some(tmpfs.collect()),
    }
}

pub(super) fn check(
    subject: &Subject<'_>,
    test: &TestSpec,
    check: &CommandCheck,
    lowers: &[PathBuf],
    work: &Path,
    log: &Log,
) -> Result<Vec<String>, BakeError> {
    let CommandCheck {
        argv,
        user,
        exit: wanted,
        stdout,
        stderr,
    } = check;
    let mut spec = container(subject, test, argv.clone(), user.as_deref(), lowers, work);
    spec.time_limit = Some(u64::try_from(test.timeout.as_millis()).unwrap_or(u64::MAX));
    let what = match argv.as_slice() {
        [shell, flag, line] if shell == "/bin/sh" && flag == "-c" => line.clone(),
        argv => argv.join(" "),
    };
    log.line(&format!("-- {what}"));
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let exit = sandbox::run(&spec, &|| false, &mut |stream, bytes| {
        let kept = match stream {
            Stream::Stdout => &mut said,
            Stream::Stderr => &mut complained,
        };
        let room = SAID_MAX.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
        log.write(&bytes[..room]);
    });
    let exit = match exit {
        Ok(exit) => exit,
        // It is the image's own doing that it has no such program or user.
        Err(sandbox::SandboxError::Start(reason)) => {
            return Ok(vec![format!("`{what}`: {reason}")]);
        }
        Err(source) => {
            return Err(BakeError::Sandbox {
                image: subject.name.to_owned(),
                step: format!("test \"{}\"", test.name),
                source,
            });
        }
    };
    let (said, complained) = (
        String::from_utf8_lossy(&said),
        String::from_utf8_lossy(&complained),
    );
    let mut failures = Vec::new();
    if exit != SandboxExit::Exited(i32::from(*wanted)) {
        let ending = ending(&exit, test);
        let mut failure = match wanted {
            0 => format!("`{what}` {ending}"),
            wanted => format!("`{what}` {ending}, and code {wanted} is expected"),
        };
        let last = complained.trim_end().lines().last();
        if let Some(last) = last.or(said.trim_end().lines().last()) {
            failure.push_str(&format!(": {last}"));
        }
        failures.push(failure);
    }
    for (stream, text, check) in [("stdout", said, stdout), ("stderr", complained, stderr)] {
        failures.extend(text_failures(
            &format!("the {stream} of `{what}`"),
            &text,
            check,
        ));
    }
    Ok(failures)
}

pub(super) fn ending(exit: &SandboxExit, test: &TestSpec) -> String {
    match exit {
        SandboxExit::Exited(code) => format!("exited with code {code}"),
        SandboxExit::Signalled(signal) => format!("was ended by signal {signal}"),
        SandboxExit::OutOfMemory => match limits::memory() {
            Some(limit) => format!("needed more than {} of memory", limits::shown(limit)),
            None => "needed more memory than there is".to_owned(),
        },
        SandboxExit::Stopped => "was stopped".to_owned(),
        SandboxExit::TimedOut => format!("took longer than {} ms", test.timeout.as_millis()),
    }
}
