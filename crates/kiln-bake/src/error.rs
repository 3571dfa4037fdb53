//! Why a bake failed.

use std::io;
use std::path::PathBuf;

use kiln_model::Digest;

#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    #[error(
        "image `{image}` is for {arch}, and this machine is {own}: its packages can be locked here (`kiln lock`), but their scripts can't be run. Bake it on {arch}, or leave `arch` out"
    )]
    ForeignArch {
        image: String,
        arch: String,
        own: String,
    },
    #[error(
        "{url} can't be fetched: {reason}. Without the archive a bake works only while kiln.lock fits and its packages are in the store"
    )]
    Fetch { url: String, reason: String },
    #[error("{url} is not signed by a key that kiln trusts: {reason}. Nothing of it was used")]
    Signature { url: String, reason: String },
    #[error(
        "image `{image}`: debian {{ keyring = \"{keyring}\" }}: {reason}. It has to be a file of the definition's folder with the archive's public keys"
    )]
    Keyring {
        image: String,
        keyring: String,
        reason: String,
    },
    #[error(
        "image `{image}` would get no security fixes: there is no {suite} {place}. Name their archive with debian {{ security_mirror = \"https://HOST/debian-security\" }}, or say that it goes without them: security = false"
    )]
    NoFixes {
        image: String,
        suite: String,
        /// With the word before it.
        place: String,
    },
    #[error("{url} can't be trusted: {reason}")]
    Release { url: String, reason: String },
    #[error(
        "{url} has the digest {found}, and the signed index says {expected}: the mirror is being updated or is wrong; try again later"
    )]
    Mismatch {
        url: String,
        expected: Digest,
        found: Digest,
    },
    #[error("image `{image}`: the suite `{suite}` has no package `{package}`{nearest}")]
    NoPackage {
        image: String,
        suite: String,
        package: String,
        nearest: String,
    },
    #[error("image `{image}`: {package} needs `{dependency}`, which nothing in the suite gives")]
    Unsatisfied {
        image: String,
        package: String,
        dependency: String,
    },
    #[error(
        "image `{image}`: {package} can't be installed beside {other}: it says `{field}: {relation}`. Take one of them out"
    )]
    Conflict {
        image: String,
        package: String,
        other: String,
        field: &'static str,
        relation: String,
    },
    #[error("image `{image}`: {first} and {second} both have the file {path}")]
    SamePath {
        image: String,
        first: String,
        second: String,
        path: PathBuf,
    },
    #[error("the package {package} is damaged: {reason}")]
    Package { package: String, reason: String },
    #[error("image `{image}`, step `{step}` {ending}:\n{output}")]
    Step {
        image: String,
        step: String,
        ending: String,
        output: String,
        /// It had none, and its programs say that they miss it.
        misses_network: bool,
    },
    #[error(
        "the network of the Dockerfile's steps can't be made: bake with --network none where they need none"
    )]
    Network(#[from] kiln_engine::NetError),
    #[error("image `{image}`, step `{step}`: its container can't be run")]
    Sandbox {
        image: String,
        step: String,
        #[source]
        source: kiln_engine::sandbox::SandboxError,
    },
    #[error("image `{image}`: copy {{ from = \"{from}\" }}: {reason}")]
    Copy {
        image: String,
        from: String,
        reason: String,
    },
    #[error("image `{image}`: user `{user}`: {reason}")]
    User {
        image: String,
        user: String,
        reason: String,
    },
    #[error(
        "image `{image}` has no `{command}`, which is its command: add its package, copy it, or mend `cmd`"
    )]
    NoCommand { image: String, command: String },
    #[error(
        "image `{image}`: `{command}` is its command and is not executable: set its mode before it is copied"
    )]
    NotExecutable { image: String, command: String },
    #[error(
        "image `{image}` would give away what looks secret:\n{findings}\nTake it out of the step that brings it (deleted by a later step it is still in its layer), or, where it is none, excuse it: {excuses}"
    )]
    Leaks {
        image: String,
        findings: String,
        excuses: String,
    },
    #[error(
        "image `{image}`: {failed} of {of} tests failed, so it has no tag:\n{failures}\nWhat its programs said is in {log}"
    )]
    Tests {
        image: String,
        failed: usize,
        of: usize,
        failures: String,
        log: PathBuf,
    },
    #[error(
        "image `{image}`: an excuse for a leak names the rule `{rule}`, which there is not: the rules are {known}"
    )]
    NoRule {
        image: String,
        rule: String,
        known: String,
    },
    #[error("the store can't be used")]
    Store(#[from] kiln_oci::StoreError),
    #[error("the step's result can't be read as a layer")]
    Layer(#[from] kiln_oci::LayerError),
    #[error("the image can't be looked into")]
    View(#[source] io::Error),
    #[error(
        "no space left on the disk for {path}: free some, or choose another data root with KILN_ROOT"
    )]
    NoSpace { path: PathBuf },
    #[error("{path} can't be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A whole text with its place and help.
    #[error(transparent)]
    Dockerfile(#[from] kiln_config::dockerfile::DockerfileError),
    #[error("`{step}`: {reason}")]
    DockerfileStep { step: String, reason: String },
    #[error("{place}")]
    Instruction {
        place: Box<kiln_config::dockerfile::DockerfileError>,
        #[source]
        source: Box<BakeError>,
    },
    /// Not by itself: another stage failed.
    #[error("the bake was stopped")]
    Stopped,
    #[error("{url} can't be fetched: {reason}")]
    Download { url: String, reason: String },
    #[error("the context {context} can't be used: {reason}")]
    Context { context: String, reason: String },
    #[error(transparent)]
    Git(#[from] kiln_git::GitError),
    #[error("{url} has the digest {found}, and its checksum says {expected}: it is not used")]
    Checksum {
        url: String,
        expected: Digest,
        found: Digest,
    },
    #[error(transparent)]
    Import(Box<kiln_oci::ImportError>),
    #[error("a step has no canonical form")]
    Canonical(#[from] kiln_model::CanonicalError),
}

impl From<kiln_oci::ImportError> for BakeError {
    fn from(error: kiln_oci::ImportError) -> Self {
        Self::Import(Box::new(error))
    }
}

impl BakeError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { path, source },
        }
    }
}
