//! What the RUNs of a Dockerfile are given and allowed: `--secret`, `--ssh`, `--allow`, `--network`, in the forms that buildx has.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bake::{Granted, SshAgent, SshKeys};

use crate::failure::Failure;

/// As BuildKit bounds a secret.
const SECRET_MAX: u64 = 500 << 10;

/// What the client of ssh is configured by, as its `-F` has it.
const SSH_CONFIG: &str = "KILN_SSH_CONFIG";

/// What a RUN may do beyond its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Entitlement {
    #[value(name = "network.host")]
    NetworkHost,
    #[value(name = "security.insecure")]
    SecurityInsecure,
}

/// The network of RUNs that ask for none in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    /// Outbound traffic only
    #[default]
    Default,
    /// None at all, also where a RUN asks for one
    None,
}

pub(crate) fn granted(
    secrets: &[String],
    ssh: &[String],
    allow: &[Entitlement],
    network: Network,
) -> Result<Granted, Failure> {
    Ok(Granted {
        secrets: secrets
            .iter()
            .map(|text| secret(text))
            .collect::<Result<_, _>>()?,
        ssh: ssh
            .iter()
            .map(|text| agent(text))
            .collect::<Result<_, _>>()?,
        ssh_config: std::env::var_os(SSH_CONFIG)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        network_host: allow.contains(&Entitlement::NetworkHost),
        security_insecure: allow.contains(&Entitlement::SecurityInsecure),
        no_network: network == Network::None,
        shell_on_error: false,
    })
}

fn wrong(what: &'static str, given: &str, reason: impl Into<String>) -> Failure {
    Failure::Grant {
        what,
        given: given.to_owned(),
        reason: reason.into(),
    }
}

fn secret(text: &str) -> Result<(String, Vec<u8>), Failure> {
    const WHAT: &str = "--secret";
    let mut fields = BTreeMap::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| {
            wrong(
                WHAT,
                text,
                "write it as id=NAME,src=FILE or id=NAME,env=VARIABLE",
            )
        })?;
        let key = match key.trim().to_lowercase().as_str() {
            "id" => "id",
            "src" | "source" => "src",
            "env" => "env",
            "type" => "type",
            other => {
                return Err(wrong(
                    WHAT,
                    text,
                    format!("there is no key `{other}`: it has id, src, env and type"),
                ));
            }
        };
        fields.insert(key, value);
    }
    let id = fields
        .get("id")
        .filter(|id| !id.is_empty())
        .ok_or_else(|| wrong(WHAT, text, "it has no id, by which a RUN names it"))?;
    let (mut src, mut env) = (fields.get("src").copied(), fields.get("env").copied());
    match fields.get("type").copied() {
        None | Some("file") => {}
        Some("env") => env = env.or(src.take()).or(Some(id)),
        Some(other) => {
            return Err(wrong(
                WHAT,
                text,
                format!("its type is file or env, not `{other}`"),
            ));
        }
    }
    if src.is_none() && env.is_none() {
        // As buildx has it: the variable of that name, else the file.
        if std::env::var_os(id).is_some() {
            env = Some(id);
        } else {
            src = Some(id);
        }
    }
    let content = match (env, src) {
        (Some(name), _) => {
            use std::os::unix::ffi::OsStringExt;
            let value = std::env::var_os(name);
            value
                .ok_or_else(|| wrong(WHAT, text, format!("the variable {name} is not set")))?
                .into_vec()
        }
        (None, path) => {
            read(Path::new(path.unwrap_or_default())).map_err(|reason| wrong(WHAT, text, reason))?
        }
    };
    Ok(((*id).to_owned(), content))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let mut content = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_MAX + 1).read_to_end(&mut content));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("there is no file {shown}"))
        }
        Err(error) => Err(format!("the file {shown} can't be read: {error}")),
        Ok(_) if content.len() as u64 > SECRET_MAX => {
            Err(format!("the file {shown} is larger than 500 KiB"))
        }
        Ok(_) => Ok(content),
    }
}

/// `ID`, `ID=SOCKET` or `ID=KEY,KEY…`, as buildx has it.
fn agent(text: &str) -> Result<(String, SshAgent), Failure> {
    const WHAT: &str = "--ssh";
    let (id, paths) = match text.split_once('=') {
        Some((id, paths)) => (id, paths.split(',').map(PathBuf::from).collect()),
        None => match std::env::var_os("SSH_AUTH_SOCK") {
            Some(path) if !path.is_empty() => (text, vec![PathBuf::from(path)]),
            _ => {
                return Err(wrong(
                    WHAT,
                    text,
                    "SSH_AUTH_SOCK is not set: start an agent, or name its socket or a key with ID=FILE",
                ));
            }
        },
    };
    let id = if id.is_empty() { "default" } else { id };
    let mut keys = SshKeys::default();
    for path in &paths {
        let there = std::fs::metadata(path).map_err(|error| {
            let reason = format!("{} can't be used: {error}", path.display());
            wrong(WHAT, text, reason)
        })?;
        if there.file_type().is_socket() {
            if paths.len() > 1 {
                return Err(wrong(WHAT, text, "an agent's socket stands alone"));
            }
            return Ok((id.to_owned(), SshAgent::Socket(path.clone())));
        }
        keys.add(path).map_err(|reason| wrong(WHAT, text, reason))?;
    }
    Ok((id.to_owned(), SshAgent::Keys(Arc::new(keys))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_file_or_a_variable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "hidden").unwrap();
        let path = path.display();
        for text in [
            format!("id=a,src={path}"),
            format!("source={path},id=a,type=file"),
        ] {
            assert_eq!(secret(&text).unwrap(), ("a".into(), b"hidden".to_vec()));
        }
        // Every test has it.
        let home = std::env::var("PATH").unwrap().into_bytes();
        for text in ["id=a,env=PATH", "id=a,src=PATH,type=env"] {
            assert_eq!(secret(text).unwrap(), ("a".into(), home.clone()));
        }
        assert_eq!(secret("id=PATH").unwrap(), ("PATH".into(), home));
        for (text, expected) in [
            ("src=x", "no id"),
            ("id=a,src=/none", "no file /none"),
            ("id=a,env=KILN_NONE", "not set"),
            ("id=a,type=x", "file or env"),
            ("a", "id=NAME"),
            ("id=a,x=y", "no key `x`"),
        ] {
            let error = secret(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_agent_is_a_socket_or_keys() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let given = format!("git={}", socket.display());
        let (id, found) = agent(&given).unwrap();
        assert_eq!(id, "git");
        assert!(matches!(found, SshAgent::Socket(path) if path == socket));
        let key = folder.path().join("id_rsa");
        std::fs::write(&key, "").unwrap();
        for (given, said) in [
            (format!("a={}", key.display()), "neither an agent's socket"),
            (format!("a={0},{0}", socket.display()), "stands alone"),
            ("a=/nowhere".to_owned(), "can't be used"),
        ] {
            let error = agent(&given).unwrap_err().to_string();
            assert!(error.contains(said), "{given}: {error}");
        }
    }
}
