//! What the caller gives to the RUNs of a Dockerfile, and what they may do. No secret is in a key, a layer or a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_git::{Access, SshAgent};

#[derive(Clone, Default)]
pub struct Granted {
    /// By id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// By id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// What the client of ssh is configured by, in place of the user's own file.
    pub ssh_config: Option<PathBuf>,
    /// `RUN --network=host`.
    pub network_host: bool,
    /// `RUN --security=insecure`.
    pub security_insecure: bool,
    /// No RUN has a network, whatever it asks for.
    pub no_network: bool,
    /// A RUN that fails is followed by a shell where it was, with this process's input and output.
    pub shell_on_error: bool,
}

/// Arguments that need no ARG, and are in no key: what they are is the network's business.
pub(crate) const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What is shown in place of a secret.
const MASK: &str = "****";
/// A shorter one would be found in anything.
const SHORTEST: usize = 4;

impl Granted {
    /// What of it repositories are asked with.
    pub(crate) fn access<'a>(&'a self, work: &'a Path) -> Access<'a> {
        Access {
            secrets: &self.secrets,
            ssh: &self.ssh,
            ssh_config: self.ssh_config.as_deref(),
            work,
        }
    }

    /// As `--allow` names them.
    pub(crate) fn rights(&self) -> Vec<&'static str> {
        let all = [
            ("network.host", self.network_host),
            ("security.insecure", self.security_insecure),
        ];
        let given = all.into_iter().filter(|(_, given)| *given);
        given.map(|(name, _)| name).collect()
    }

    /// `text` without any of the secrets.
    pub(super) fn masked(&self, text: &str) -> String {
        let secrets: Vec<_> = self
            .secrets
            .values()
            .map(|secret| String::from_utf8_lossy(secret))
            .collect();
        // Lines of output are looked at one by one.
        let mut lines: Vec<&str> = secrets
            .iter()
            .flat_map(|secret| secret.lines().map(str::trim))
            .filter(|line| line.len() >= SHORTEST)
            .collect();
        // One may be the beginning of another.
        lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
        let mut masked = text.to_owned();
        for line in lines {
            if masked.contains(line) {
                masked = masked.replace(line, MASK);
            }
        }
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let granted = Granted {
            secrets: BTreeMap::from([
                ("a".to_owned(), b"hunter22\n-----KEY\n".to_vec()),
                ("b".to_owned(), b"x".to_vec()),
                ("c".to_owned(), b"hunter22-prod".to_vec()),
            ]),
            ..Granted::default()
        };
        assert_eq!(granted.masked("x=hunter22, -----KEY x"), "x=****, **** x");
        assert_eq!(granted.masked("hunter22-prod"), "****");
    }
}
