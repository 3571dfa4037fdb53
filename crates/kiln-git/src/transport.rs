//! How a repository is reached: over HTTP, plain TCP or ssh.

use crate::access::{Access, Trust};
use crate::error::GitError;
use crate::http::HttpRepository;
use crate::source::{GitSource, Reached};
use crate::{ssh, tcp};

/// A repository that can be asked.
pub(crate) enum Repository<'a> {
    Http(HttpRepository),
    Tcp { host: &'a str, path: &'a str },
    Ssh(Access<'a>),
}

impl GitSource {
    pub(crate) fn open<'a>(&'a self, trust: Trust<'a>) -> Result<Repository<'a>, GitError> {
        // They would be lines of other protocols where a server is not Git's.
        if self.url.chars().any(char::is_control) {
            return Err(self.error("its address has control characters"));
        }
        match self.reached() {
            Reached::Http => HttpRepository::open(self, trust).map(Repository::Http),
            Reached::Tcp { host, path } => Ok(Repository::Tcp { host, path }),
            Reached::Ssh => Ok(Repository::Ssh(trust.access)),
            Reached::Otherwise => Err(self.error(
                "it is reached by nothing that kiln speaks: https://, http://, git:// and ssh://",
            )),
        }
    }
}

impl Repository<'_> {
    /// What it answers to one command, of at most `limit` bytes.
    pub(crate) fn ask(
        &self,
        source: &GitSource,
        request: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, GitError> {
        match self {
            Self::Http(repository) => repository.ask(source, request, limit),
            Self::Tcp { host, path } => tcp::ask(source, host, path, request, limit),
            Self::Ssh(access) => ssh::ask(source, *access, request, limit),
        }
    }
}
