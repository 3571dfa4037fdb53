//! Whether a step failed for want of a network, by what its programs say of it.

/// In small letters: of the C library, curl, wget, git, apt, busybox, pip, npm, Go, Java and others.
const SAID: &[&str] = &[
    "bad address",
    "could not connect to",
    "could not resolve",
    "couldn't connect to",
    "couldn't resolve",
    "dial tcp",
    "eai_again",
    "enetunreach",
    "enotfound",
    "failed to connect to",
    "failed to establish a new connection",
    "failed to lookup address",
    "name does not resolve",
    "name or service not known",
    "name resolution",
    "network is unreachable",
    "network unreachable",
    "no address associated with hostname",
    "no route to host",
    "no such host",
    "temporary error (try again later)",
    "temporary failure resolving",
    "unable to resolve",
    "unable to connect to",
    "unknownhostexception",
    "unknown host",
];

pub(crate) fn is_said(output: &str) -> bool {
    let output = output.to_lowercase();
    SAID.iter().any(|said| output.contains(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_say_that_there_is_no_network() {
        for output in [
            "curl: (6) Could not resolve host: example.org",
            "wget: bad address 'example.org'",
            "W: Failed to fetch http://x/  Temporary failure resolving 'x'",
            "ping: connect: Network is unreachable",
            "npm ERR! code EAI_AGAIN",
            "go: x: Get \"https://x\": dial tcp: lookup x on [::1]:53: read udp: refused",
            "socket.gaierror: [Errno -3] Temporary failure in name resolution",
            "java.net.UnknownHostException: repo.example.org",
        ] {
            assert!(is_said(output), "{output}");
        }
        for output in [
            "",
            "sh: no: not found",
            "mv: can't rename '/a': No such file or directory",
            "E: Unable to locate package x",
            "1 test of networks failed",
        ] {
            assert!(!is_said(output), "{output}");
        }
    }
}
