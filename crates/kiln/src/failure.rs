//! Every way a command can fail, with its exit code and what to type next.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use kiln_model::api::{ApiError, ErrorCode};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Done,
    Failed,
    Changes,
    RolledBack,
    Usage,
    Interrupted,
}

impl Exit {
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Changes => 2,
            Self::RolledBack => 3,
            Self::Usage => 64,
            // As of a program that SIGINT ended.
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(u8::try_from(exit.code()).unwrap_or(1))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Already whole sentences with places and help.
    #[error(transparent)]
    Definition(#[from] kiln_config::ConfigErrors),
    /// As a definition's.
    #[error("{0}")]
    Dockerfile(Box<kiln_config::dockerfile::DockerfileError>),
    #[error("{place}")]
    Instruction {
        place: Box<kiln_config::dockerfile::DockerfileError>,
        #[source]
        source: Box<kiln_bake::BakeError>,
    },
    #[error("{} can't be read", path.display())]
    ReadDockerfile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: the pattern in line {line} is malformed", path.display())]
    Ignore { path: PathBuf, line: usize },
    #[error("the context {} can't be used", path.display())]
    Context {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}")]
    Arguments {
        what: &'static str,
        help: &'static str,
    },
    #[error("{what} {given}: {reason}")]
    Grant {
        what: &'static str,
        given: String,
        reason: String,
    },
    #[error("there is no definition at {}", path.display())]
    NoDefinition { path: PathBuf },
    #[error("the definition {} can't be read", path.display())]
    ReadDefinition {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the definition {} can't be written", path.display())]
    WriteDefinition {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the definition has no image `{name}`")]
    NoImage { name: String, known: String },
    #[error("{what} needs root: it mounts file systems and makes namespaces and cgroups")]
    NotRoot { what: &'static str },
    #[error("the data root {} can't be used", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the path of the data root {} is too long: the sockets in it could not be opened", path.display())]
    RootTooLong { path: PathBuf },
    #[error("kiln is not running on {}", root.display())]
    NotRunning { root: PathBuf },
    #[error("{}", .0.message)]
    Api(ApiError),
    #[error("kiln on {} can't be asked", root.display())]
    Socket {
        root: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the controller's answer can't be understood: {what}")]
    Answer { what: String },
    #[error("the controller ended while it was working")]
    BrokenOff,
    #[error("the controller on {} did not answer within {seconds} s", root.display())]
    Silent {
        root: PathBuf,
        seconds: u64,
        /// Of the process that listens, where it is known.
        pid: Option<i32>,
    },
    #[error("{what} is not ready after {seconds} s")]
    NotReady { what: String, seconds: u64 },
    #[error("the store can't be used")]
    Store(#[from] kiln_oci::StoreError),
    #[error("what runs can't be found out, so nothing is removed")]
    Journal(#[from] kiln_daemon::JournalError),
    #[error("image `{image}` can't be baked")]
    Bake {
        image: String,
        #[source]
        source: Box<kiln_bake::BakeError>,
    },
    #[error("image `{image}`: a base of it can't be used")]
    Base {
        image: String,
        #[source]
        source: Box<kiln_oci::ImportError>,
    },
    #[error(
        "`service \"{service}\"` has the secret `{secret}`, and this version of kiln can't give an instance a secret yet"
    )]
    Secret { service: String, secret: String },
    #[error("images stand on each other in a circle: {}", chain.join(", on "))]
    BaseCircle { chain: Vec<String> },
    #[error("the packages of image `{image}` can't be locked")]
    Locking {
        image: String,
        #[source]
        source: Box<kiln_bake::BakeError>,
    },
    #[error("kiln.lock has no package `{name}` that could be updated")]
    NotLocked { name: String },
    #[error("{} takes one image, and {} are baked", path.display(), images.join(", "))]
    OneOutput { path: PathBuf, images: Vec<String> },
    #[error("the image `{image}` has no {what}: it was baked before kiln made one")]
    NoDocument { image: String, what: &'static str },
    #[error("the image `{image}` can't be verified: {why}")]
    NotVerifiable {
        image: String,
        why: String,
        help: String,
    },
    #[error("{what} can't be compared")]
    Compare {
        what: String,
        #[source]
        source: Box<kiln_bake::BakeError>,
    },
    #[error("{} can't be read or written", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the commit {commit} can't be read")]
    Commit {
        commit: String,
        #[source]
        source: crate::git::GitError,
    },
    #[error("the second bake failed, as it says above")]
    Rebake,
    #[error("the image can't be written")]
    Export(#[from] kiln_oci::ExportError),
    #[error("the lock {} can't be used", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("this machine can't run instances")]
    Engine(#[from] kiln_engine::EngineError),
    #[error("kiln could not be started on {}", root.display())]
    Start { root: PathBuf, log: String },
    #[error("kiln's supervisor could not be started")]
    Spawn(#[source] std::io::Error),
    #[error("kiln on {} did not end within {seconds} s", root.display())]
    NotEnded { root: PathBuf, seconds: u64 },
    #[error("interrupted: {left}")]
    Interrupted { left: String },
    #[error("signals can't be caught")]
    Signals(#[source] std::io::Error),
    #[error("the controller failed")]
    Serve(#[from] kiln_daemon::DaemonError),
    #[error("the supervisor failed")]
    Supervise(#[from] kiln_supervise::SuperviseError),
    #[error("the proxy failed")]
    Proxy(#[from] kiln_proxy::ProxyError),
    #[error("the output can't be written")]
    Output(#[source] std::io::Error),
}

impl From<kiln_config::dockerfile::DockerfileError> for Failure {
    fn from(error: kiln_config::dockerfile::DockerfileError) -> Self {
        Self::Dockerfile(Box::new(error))
    }
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoImage { .. }
            | Self::NotLocked { .. }
            | Self::OneOutput { .. }
            | Self::RootTooLong { .. }
            | Self::Grant { .. }
            | Self::Arguments { .. } => Exit::Usage,
            // Whoever closed the pipe has read what it wanted.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Interrupted { .. } => Exit::Interrupted,
            Self::Definition(_)
            | Self::Dockerfile(_)
            | Self::Instruction { .. }
            | Self::ReadDockerfile { .. }
            | Self::Ignore { .. }
            | Self::Context { .. }
            | Self::NoDefinition { .. }
            | Self::ReadDefinition { .. }
            | Self::WriteDefinition { .. }
            | Self::NotRoot { .. }
            | Self::Root { .. }
            | Self::NotRunning { .. }
            | Self::Api(_)
            | Self::Socket { .. }
            | Self::Answer { .. }
            | Self::BrokenOff
            | Self::Silent { .. }
            | Self::NotReady { .. }
            | Self::Store(_)
            | Self::Journal(_)
            | Self::Bake { .. }
            | Self::Base { .. }
            | Self::Secret { .. }
            | Self::BaseCircle { .. }
            | Self::Locking { .. }
            | Self::NoDocument { .. }
            | Self::NotVerifiable { .. }
            | Self::Commit { .. }
            | Self::Compare { .. }
            | Self::File { .. }
            | Self::Rebake
            | Self::Export(_)
            | Self::Lock { .. }
            | Self::Engine(_)
            | Self::Start { .. }
            | Self::Spawn(_)
            | Self::NotEnded { .. }
            | Self::Signals(_)
            | Self::Serve(_)
            | Self::Supervise(_)
            | Self::Proxy(_)
            | Self::Output(_) => Exit::Failed,
        }
    }

    /// What to type next, where the message does not say it itself.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDefinition { .. } => {
                "go to the folder of a kiln.hcl, or name it with `--file` (`kiln up DIR`)"
                    .to_owned()
            }
            Self::ReadDockerfile { .. } => "name a readable UTF-8 file".to_owned(),
            Self::Ignore { .. } => "a `[` has to be closed, and `!` needs a pattern".to_owned(),
            Self::Context { .. } => {
                "name the folder whose files are copied, at the end of the command".to_owned()
            }
            Self::Arguments { help, .. } => (*help).to_owned(),
            Self::ReadDefinition { .. } => "make it a readable UTF-8 file".to_owned(),
            Self::WriteDefinition { .. } => {
                "nothing of it was changed: make its folder writable".to_owned()
            }
            Self::NoImage { known, .. } => format!("it has: {known}"),
            Self::Secret { .. } => {
                "its images can be baked (`kiln bake`); to run it, take the `secret` out of the definition".to_owned()
            }
            Self::BaseCircle { .. } => {
                "take one of them out of `bases`, or give its FROM another name".to_owned()
            }
            Self::NotLocked { .. } => {
                "`--update` takes packages that the lock has; what an image asks for is in its `debian { packages }`"
                    .to_owned()
            }
            Self::NoDocument { .. } => "bake it again".to_owned(),
            Self::Compare { .. } => {
                "a bake makes what is damaged in the store again: `kiln bake`".to_owned()
            }
            Self::NotVerifiable { help, .. } => help.clone(),
            Self::Commit { .. } => {
                "fetch it (`git fetch`): the image was baked from a commit of this repository"
                    .to_owned()
            }
            Self::OneOutput { .. } => {
                "name the image (`kiln bake IMAGE --output …`), or write to a folder with oci:DIR"
                    .to_owned()
            }
            Self::NotRoot { .. } => "run the same with `sudo`".to_owned(),
            Self::Root { .. } => {
                "name a folder that can be written with `--root DIR` or KILN_ROOT".to_owned()
            }
            Self::RootTooLong { .. } => "name a root of at most 80 bytes".to_owned(),
            Self::NotRunning { .. } => {
                "start it with `kiln up` or `kiln supervise`, or name another root with `--root`"
                    .to_owned()
            }
            Self::Api(ApiError {
                code: ErrorCode::StalePlan,
                ..
            }) => "run the same again".to_owned(),
            Self::Api(ApiError {
                code: ErrorCode::Busy,
                ..
            }) => "`kiln status` shows what it waits on; run the same again when it has ended"
                .to_owned(),
            Self::Socket { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                "only root may: run the same with `sudo`".to_owned()
            }
            Self::Socket { .. } | Self::BrokenOff => {
                "the supervisor starts it again: `kiln status` shows how it went on".to_owned()
            }
            Self::Silent { pid: Some(pid), .. } => format!(
                "what runs goes on. Was it stopped (`kill -CONT {pid}`)? To have it replaced: `kill -9 {pid}`"
            ),
            Self::Silent { pid: None, .. } => {
                "what runs goes on; `kiln down` ends everything, whether it answers or not".to_owned()
            }
            Self::NotReady { .. } => {
                "kiln goes on trying: `kiln status` shows how far it is, `kiln history` and `kiln logs` why".to_owned()
            }
            Self::Answer { .. } => {
                "is another version of kiln running? `kiln down`, then `kiln up`".to_owned()
            }
            Self::Lock { .. } => "mend it, or delete it to resolve the packages anew".to_owned(),
            Self::Start { log, .. } if log.is_empty() => {
                "its log is empty: try `kiln supervise` in the foreground".to_owned()
            }
            Self::Start { log, .. } => format!("its log ends with:\n{log}"),
            Self::NotEnded { root, .. } => {
                format!("{} says why", root.join("log/supervise.log").display())
            }
            Self::Definition(_)
            | Self::Dockerfile(_)
            | Self::Instruction { .. }
            | Self::Api(_)
            | Self::Store(_)
            | Self::Journal(_)
            | Self::Bake { .. }
            | Self::Base { .. }
            | Self::Rebake
            | Self::Locking { .. }
            | Self::Export(_)
            | Self::Engine(_)
            | Self::Spawn(_)
            | Self::Interrupted { .. }
            | Self::Signals(_)
            | Self::Serve(_)
            | Self::Supervise(_)
            | Self::Proxy(_)
            | Self::Grant { .. }
            | Self::File { .. }
            | Self::Output(_) => return None,
        })
    }
}
