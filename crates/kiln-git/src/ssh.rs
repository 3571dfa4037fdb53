//! Repositories that are reached by ssh: as git itself has it, the machine's own client gives the stream to `git-upload-pack`.
//!
//! It is the one program of the host that a bake executes: it knows the user's servers, their keys and the way there. It runs in no step's
//! container, for a repository that the caller's Dockerfile names, and all that it brings is checked by the commit's name. Addresses may come
//! from a repository's `.gitmodules`: none may become an option of the client, or a word of a shell.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_http::percent_decoded;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getgid, getuid, kill_process_group, pidfd_open};

use crate::access::Access;
use crate::agent::{ForwardedAgent, SshAgent};
use crate::error::GitError;
use crate::protocol::{CONNECT, NO_VERSION, REFS_MAX, SILENCE, speaks_version_2, until_flush};
use crate::source::GitSource;

const PROGRAM: &str = "ssh";
/// The id of the agent that signs in, as BuildKit has it.
const AGENT: &str = "default";
/// What is kept of what the client says.
const SAID_MAX: usize = 4 << 10;
/// Of a client that has said its last word.
const ENDS: Duration = Duration::from_secs(2);

/// Where a repository is: `ssh://[user@]host[:port]/path`, or `user@host:path`.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    user: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
    path: String,
}

impl<'a> Place<'a> {
    fn parse(url: &'a str) -> Result<Self, String> {
        let (authority, path, is_url) = match url.strip_prefix("ssh://") {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let path = percent_decoded(path);
                // `/~user/path` begins at the user's folder.
                let path = match path.strip_prefix("/~") {
                    Some(rest) => format!("~{rest}"),
                    None => path,
                };
                (authority, path, true)
            }
            None => {
                let begin = url.find('@').map_or(0, |at| at + 1);
                let after = match url[begin..].find(']') {
                    Some(end) if url[begin..].starts_with('[') => begin + end,
                    _ => begin,
                };
                let colon = url[after..]
                    .find(':')
                    .map(|colon| after + colon)
                    .ok_or_else(|| "its address names no path".to_owned())?;
                (&url[..colon], url[colon + 1..].to_owned(), false)
            }
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if is_url && !port.contains(']') => {
                let number = port.parse().map_err(|_| format!("`{port}` is no port"))?;
                (host, Some(number))
            }
            _ => (host, None),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        // The client's configuration may give both to a shell.
        let is_name = |name: &str, others: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        if !is_name(host, "-._:") {
            return Err(format!("`{host}` is no name of a server"));
        }
        if let Some(user) = user.filter(|user| !is_name(user, "-._+")) {
            return Err(format!("`{user}` is no name of a user"));
        }
        if path.trim_matches('/').is_empty() || path.starts_with('-') {
            return Err(format!("`{path}` is no path of a repository"));
        }
        if path.contains(char::is_control) {
            return Err("its address has control characters".to_owned());
        }
        Ok(Self {
            user,
            host,
            port,
            path,
        })
    }

    /// What the server's shell is given.
    fn command(&self, asks_by_env: bool) -> String {
        // As git itself quotes it.
        let path = self.path.replace('\'', r"'\''").replace('!', r"'\!'");
        let env = if asks_by_env {
            "env GIT_PROTOCOL=version=2 "
        } else {
            ""
        };
        format!("{env}git-upload-pack '{path}'")
    }

    fn arguments(&self, config: Option<&Path>, asks_by_env: bool) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        if let Some(config) = config {
            all.extend(["-F".into(), config.into()]);
        }
        for option in [
            // Nobody is asked anything, and who is not known is not trusted.
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            // The given agent alone signs in, also where the user's configuration names another.
            "IdentityAgent=SSH_AUTH_SOCK".to_owned(),
            "IdentityFile=none".to_owned(),
            // Nothing but this stream, and nothing that outlives it.
            "ForwardAgent=no".to_owned(),
            "ForwardX11=no".to_owned(),
            "ClearAllForwardings=yes".to_owned(),
            "PermitLocalCommand=no".to_owned(),
            "ControlMaster=no".to_owned(),
            "ControlPath=none".to_owned(),
            "RequestTTY=no".to_owned(),
            "ForkAfterAuthentication=no".to_owned(),
            "StdinNull=no".to_owned(),
            "SessionType=default".to_owned(),
            "RemoteCommand=none".to_owned(),
            format!("ConnectTimeout={}", CONNECT.as_secs()),
            "ServerAliveInterval=15".to_owned(),
            "SendEnv=GIT_PROTOCOL".to_owned(),
        ] {
            all.extend(["-o".into(), option.into()]);
        }
        if let Some(port) = self.port {
            all.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = self.user {
            all.extend(["-l".into(), user.into()]);
        }
        all.push("--".into());
        all.push(self.host.into());
        all.push(self.command(asks_by_env).into());
        all
    }

    /// What to do about what the client says.
    fn help(&self, said: &str) -> String {
        if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return ": its key is not the one that is known".to_owned();
        }
        if said.contains("Host key verification failed") {
            let port = self
                .port
                .map_or(String::new(), |port| format!("-p {port} "));
            return format!(
                ": its key is not known here; once it is the one that its owner tells, `ssh-keyscan {port}{} >> ~/.ssh/known_hosts` makes it known",
                self.host
            );
        }
        if said.contains("Permission denied") {
            return format!(": it takes none of the keys of --ssh {AGENT}");
        }
        String::new()
    }
}

/// A connection for each command, as by plain TCP.
pub(crate) fn ask(
    source: &GitSource,
    access: Access<'_>,
    request: &[u8],
    limit: u64,
) -> Result<Vec<u8>, GitError> {
    let place = Place::parse(&source.url).map_err(|problem| source.error(problem))?;
    let agent = access.ssh.get(AGENT).ok_or_else(|| {
        source.error(format!(
            "it is reached by ssh, and nobody signs in: --ssh {AGENT} gives the agent of SSH_AUTH_SOCK, and --ssh {AGENT}=KEYFILE a key"
        ))
    })?;
    let socket = Socket::of(agent, access.work)?;
    let config = access.ssh_config;
    // Servers take the wish for version 2 only where their configuration says so; others may take it as a part of the command.
    for asks_by_env in [false, true] {
        let arguments = place.arguments(config, asks_by_env);
        let mut client = Client::start(PROGRAM, &arguments, &socket.path)
            .map_err(|problem| source.error(problem))?;
        let answer = until_flush(&mut client, REFS_MAX).and_then(|greeting| {
            if !speaks_version_2(&greeting) {
                return Ok(None);
            }
            client
                .input
                .write_all(request)
                .map_err(|error| error.to_string())?;
            until_flush(&mut client, limit).map(Some)
        });
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(_) if asks_by_env => break,
            Err(problem) => {
                return Err(source.error(client.ended(problem, |said| place.help(said))));
            }
        }
    }
    Err(source.error(format!(
        "{NO_VERSION}; where it is one's own, `AcceptEnv GIT_PROTOCOL` in its sshd_config may be missing"
    )))
}

/// Of the agent that signs in.
struct Socket {
    path: OsString,
    /// Of the caller's keys, which this process has.
    _own: Option<(ForwardedAgent, OwnedFd, SocketFolder)>,
}

impl Socket {
    fn of(agent: &SshAgent, work: &Path) -> Result<Self, GitError> {
        if let SshAgent::Socket(path) = agent {
            return Ok(Self {
                path: path.into(),
                _own: None,
            });
        }
        const NAME: &str = "agent";
        let scratch = SocketFolder::new(work)?;
        let failed = GitError::io(&scratch.0);
        let owner = (0o600, getuid().as_raw(), getgid().as_raw());
        let agent = match ForwardedAgent::forward(&scratch.0, NAME, agent.clone(), owner) {
            Ok(agent) => agent,
            Err(error) => return Err(failed(error)),
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let folder = rustix::fs::open(&scratch.0, flags, rustix::fs::Mode::empty())
            .map_err(|error| failed(error.into()))?;
        // A socket's path has 107 bytes at most, and a data root may be anywhere.
        let number = folder.as_raw_fd();
        let path = format!("/proc/{}/fd/{number}/{NAME}", std::process::id());
        Ok(Self {
            path: path.into(),
            _own: Some((agent, folder, scratch)),
        })
    }
}

/// The folder of a socket of ours, removed with it. It is named as bakes name their folders for a while, so that the next bake sweeps one
/// that a killed process left.
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn new(work: &Path) -> Result<Self, GitError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = work.join(format!("step-{}-ssh-{number}", std::process::id()));
        fs::create_dir_all(&path).map_err(GitError::io(&path))?;
        Ok(Self(path))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // One that stays is swept by the next bake.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program, as a stream. Dropping it ends it.
struct Client {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    errors: ChildStderr,
    errors_ended: bool,
    said: Vec<u8>,
}

impl Client {
    fn start(program: &str, arguments: &[OsString], agent: &OsString) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(arguments)
            .env("SSH_AUTH_SOCK", agent)
            .env("GIT_PROTOCOL", "version=2")
            .env("SSH_ASKPASS_REQUIRE", "never")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // With what it starts to get there.
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => format!(
                    "it is reached by ssh, and this machine has no `{program}`: install OpenSSH's client (Debian's openssh-client), or write an https:// address"
                ),
                _ => format!("it is reached by ssh, and `{program}` can't be started: {error}"),
            })?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(input), Some(output), Some(errors)) => Ok(Self {
                child,
                input,
                output,
                errors,
                errors_ended: false,
                said: Vec::new(),
            }),
            // All three were asked for.
            _ => Err(format!("`{program}` has no streams")),
        }
    }

    /// Takes what there is of what it says; what is more than anybody reads is dropped.
    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1 << 10];
        let count = self.errors.read(&mut buffer)?;
        self.errors_ended = count == 0;
        let room = SAID_MAX - self.said.len();
        self.said.extend(&buffer[..count.min(room)]);
        Ok(())
    }

    /// The status of a client that has said its last word; none where it goes on.
    fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        while !self.errors_ended {
            let mut ready = [PollFd::new(&self.errors, PollFlags::IN)];
            if poll(&mut ready, Some(&timespec(ENDS)))? == 0 {
                break;
            }
            self.hear()?;
        }
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        poll(
            &mut [PollFd::new(&process, PollFlags::IN)],
            Some(&timespec(ENDS)),
        )?;
        self.child.try_wait()
    }

    /// `problem` in the words of the client, where it has some.
    fn ended(mut self, problem: String, help: impl Fn(&str) -> String) -> String {
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => return format!("{problem}; {error}"),
        };
        let said = String::from_utf8_lossy(&self.said);
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let text: String = lines
            .join("; ")
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        let help = help(&text);
        match status {
            Some(status) if !status.success() => {
                let code = match status.code() {
                    Some(code) => code.to_string(),
                    None => status.to_string(),
                };
                format!("ssh ended with {code}: {text}{help}")
            }
            _ if text.is_empty() => problem,
            _ => format!("{problem}: {text}{help}"),
        }
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = vec![PollFd::new(&self.output, PollFlags::IN)];
            if !self.errors_ended {
                ready.push(PollFd::new(&self.errors, PollFlags::IN));
            }
            if poll(&mut ready, Some(&timespec(SILENCE)))? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
            let is_ready = |one: &PollFd<'_>| !one.revents().is_empty();
            let (answers, speaks) = (is_ready(&ready[0]), ready.get(1).is_some_and(is_ready));
            if speaks {
                self.hear()?;
            }
            if answers {
                return self.output.read(buffer);
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_user_host_port_and_path() {
        for (url, user, host, port, path) in [
            ("ssh://x.io/a.git", None, "x.io", None, "/a.git"),
            ("ssh://g@x.io:22/a%20b", Some("g"), "x.io", Some(22), "/a b"),
            ("ssh://g@[::1]:9/~u/a", Some("g"), "::1", Some(9), "~u/a"),
            ("ssh://[::1]/a", None, "::1", None, "/a"),
            ("git@x.io:a/b.git", Some("git"), "x.io", None, "a/b.git"),
            ("git@x.io:/a:b", Some("git"), "x.io", None, "/a:b"),
            ("git@[fe80::1]:~/a", Some("git"), "fe80::1", None, "~/a"),
        ] {
            let found = Place::parse(url).unwrap();
            let expected = Place {
                user,
                host,
                port,
                path: path.to_owned(),
            };
            assert_eq!(found, expected, "{url}");
        }
    }

    #[test]
    fn addresses_become_no_options_and_no_words_of_a_shell() {
        for (url, said) in [
            ("ssh://-oProxyCommand=x/a", "no name of a server"),
            ("-oProxyCommand=x@x.io:a", "no name of a user"),
            ("ssh://-l@x.io/a", "no name of a user"),
            ("git@-x:a", "no name of a server"),
            ("git@x.io;id:a", "no name of a server"),
            ("git@$(id):a", "no name of a server"),
            ("`id`@x.io:a", "no name of a user"),
            ("ssh://u:p@x.io/a", "no name of a user"),
            ("ssh://x.io:0x16/a", "no port"),
            ("ssh://x.io", "no path"),
            ("ssh:///a", "no name of a server"),
            ("git@x.io:-a", "no path"),
            ("ssh://x.io/a%0ab", "control characters"),
        ] {
            let error = Place::parse(url).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
        let place = Place::parse("git@x.io:it's! $(x).git").unwrap();
        assert_eq!(
            place.command(false),
            r"git-upload-pack 'it'\''s'\!' $(x).git'"
        );
        let arguments = place.arguments(None, true);
        let tail: Vec<_> = arguments[arguments.len() - 5..]
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect();
        assert_eq!(tail[..4], ["-l", "git", "--", "x.io"]);
        assert!(tail[4].starts_with("env GIT_PROTOCOL=version=2 git-upload-pack '"));
    }

    #[test]
    fn a_machine_without_a_client_is_told_so() {
        let Err(said) = Client::start("kiln-no-such-ssh", &[], &OsString::new()) else {
            panic!("there is one");
        };
        assert!(said.contains("openssh-client"), "{said}");
    }

    #[test]
    fn what_the_client_says_is_the_reason() {
        let client = |script: &str| {
            let arguments = ["-c".into(), script.into()];
            Client::start("sh", &arguments, &OsString::new()).unwrap()
        };
        let mut ended = client("echo no such repository >&2; echo \u{1b}[1m >&2; exit 128");
        let problem = until_flush(&mut ended, 99).unwrap_err();
        let said = ended.ended(problem, |said| format!("|{}", said.len()));
        assert_eq!(said, "ssh ended with 128: no such repository; [1m|23");
        // More than a pipe holds is heard, and a client that goes on is ended.
        let mut long = client("head -c 300000 /dev/zero >&2; printf 0000; exec sleep 1000");
        assert_eq!(until_flush(&mut long, 99).unwrap(), b"0000");
        assert_eq!(long.said.len(), SAID_MAX);
        drop(long);
    }
}
