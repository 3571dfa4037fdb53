//! The container that a step's command runs in: sealed, limited, and with nothing of this machine in its environment.

use std::path::Path;

use kiln_engine::SandboxMount;
use kiln_engine::sandbox::{self, SandboxExit, SandboxNetwork, SandboxSpec};

use crate::error::BakeError;
use crate::step::limits;
use crate::step::network_failure;

/// What a step says is kept to be shown when it fails.
const LINES: usize = 20;
const DPKG_ERROR: &str = "dpkg: error processing package";

pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment that every step starts from: nothing of this machine's.
pub(crate) fn environment() -> Vec<(String, String)> {
    [
        ("PATH", PATH),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
        ("HOME", "/root"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// What a step runs on.
pub(crate) struct Container<'a> {
    pub(crate) image: &'a str,
    pub(crate) step: &'a str,
    pub(crate) lowers: Vec<std::path::PathBuf>,
    pub(crate) upper: &'a Path,
    pub(crate) work: &'a Path,
    pub(crate) mounts: Vec<SandboxMount>,
    pub(crate) network: SandboxNetwork,
    pub(crate) privileged: bool,
    pub(crate) hostname: &'a str,
    /// What is shown of a line that the step said.
    pub(crate) shown: &'a dyn Fn(&str) -> String,
    /// The bake has failed elsewhere.
    pub(crate) stop: &'a dyn Fn() -> bool,
}

impl<'a> Container<'a> {
    /// Without a network or anything else beyond its layers.
    pub(crate) fn sealed(
        image: &'a str,
        step: &'a str,
        lowers: Vec<std::path::PathBuf>,
        (upper, work): (&'a Path, &'a Path),
    ) -> Self {
        Self {
            image,
            step,
            lowers,
            upper,
            work,
            mounts: Vec::new(),
            network: SandboxNetwork::None,
            privileged: false,
            hostname: "kiln",
            shown: &str::to_owned,
            stop: &|| false,
        }
    }
}

fn spec(
    container: &Container<'_>,
    argv: &[&str],
    env: Vec<(String, String)>,
    user: &str,
    cwd: &str,
) -> SandboxSpec {
    SandboxSpec {
        lowers: container.lowers.clone(),
        upper: container.upper.to_owned(),
        work: container.work.to_owned(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env,
        cwd: cwd.to_owned(),
        user: user.to_owned(),
        hostname: container.hostname.to_owned(),
        mounts: container.mounts.clone(),
        network: container.network.clone(),
        privileged: container.privileged,
        memory: limits::memory(),
        pids: Some(limits::PROCESSES),
        time_limit: Some(limits::TIME_MS),
        as_instance: None,
    }
}

/// A shell where the step was, with this process's input and output; how it ends is nobody's business.
pub(crate) fn interact(
    container: &Container<'_>,
    argv: &[&str],
    env: Vec<(String, String)>,
    user: &str,
    cwd: &str,
) -> Result<(), BakeError> {
    let mut spec = spec(container, argv, env, user, cwd);
    // A person may think.
    spec.time_limit = None;
    sandbox::interact(&spec)
        .map(drop)
        .map_err(|source| BakeError::Sandbox {
            image: container.image.to_owned(),
            step: container.step.to_owned(),
            source,
        })
}

/// Runs one command of a step to its end; anything but success is an error with the last lines it said. True: it used the network.
pub(crate) fn run(
    container: &Container<'_>,
    argv: &[&str],
    env: Vec<(String, String)>,
    user: &str,
    cwd: &str,
    said: &mut dyn FnMut(&str),
) -> Result<bool, BakeError> {
    let spec = spec(container, argv, env, user, cwd);
    let mut partial = String::new();
    let mut last: Vec<String> = Vec::new();
    // dpkg goes on with other packages after one that fails.
    let mut first_error: Option<Vec<String>> = None;
    let mut reason_follows = false;
    let mut heard = |_, bytes: &[u8]| {
        partial.push_str(&String::from_utf8_lossy(bytes));
        while let Some(end) = line_end(&partial) {
            let line: String = partial.drain(..end).collect();
            let line = (container.shown)(line.trim_end());
            let is_error = line.starts_with(DPKG_ERROR);
            if let Some(error) = &mut first_error
                && std::mem::take(&mut reason_follows)
            {
                error.push(line.clone());
            }
            said(&line);
            last.push(line);
            if last.len() > LINES {
                last.remove(0);
            }
            if is_error && first_error.is_none() {
                first_error = Some(last.clone());
                reason_follows = true;
            }
        }
    };
    let disk = limits::Disk::of(container.upper);
    let stop = || (container.stop)() || disk.is_full();
    let ended = sandbox::run_to_end(&spec, |_| {}, &stop, &mut heard).map_err(|source| {
        BakeError::Sandbox {
            image: container.image.to_owned(),
            step: container.step.to_owned(),
            source,
        }
    })?;
    if !partial.is_empty() {
        last.push((container.shown)(&partial));
    }
    let ending = match &ended.exit {
        SandboxExit::Exited(0) => return Ok(ended.used_network),
        SandboxExit::Exited(code) => format!("exited with code {code}"),
        SandboxExit::Signalled(signal) => format!("was ended by signal {signal}"),
        SandboxExit::OutOfMemory => match spec.memory {
            Some(limit) => format!("needed more than {} of memory", limits::shown(limit)),
            None => "needed more memory than there is".to_owned(),
        },
        SandboxExit::Stopped if disk.is_full() => disk.told(),
        SandboxExit::Stopped => return Err(BakeError::Stopped),
        SandboxExit::TimedOut => format!("took longer than {} s", limits::TIME_MS / 1000),
    };
    let ending = if ended.out_of_processes {
        format!(
            "{ending}; it had all of the {} processes that a step may have",
            limits::PROCESSES
        )
    } else {
        ending
    };
    let output = first_error.unwrap_or(last).join("\n");
    Err(BakeError::Step {
        image: container.image.to_owned(),
        step: container.step.to_owned(),
        ending,
        // What was ended from outside says nothing of why.
        misses_network: matches!(container.network, SandboxNetwork::None)
            && matches!(ended.exit, SandboxExit::Exited(_))
            && !ended.out_of_processes
            && network_failure::is_said(&output),
        output,
    })
}

/// Where the first line of `text` ends: behind its end of line, or where it is too long to be waited for.
fn line_end(text: &str) -> Option<usize> {
    match text.find('\n') {
        Some(end) => Some(end + 1),
        None if text.len() > limits::LINE => Some(text.len()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_without_an_end_of_line_is_not_hoarded() {
        assert_eq!(line_end("one\ntwo"), Some(4));
        assert_eq!(line_end("one"), None);
        let endless = "x".repeat(limits::LINE + 1);
        assert_eq!(line_end(&endless), Some(endless.len()));
    }
}
