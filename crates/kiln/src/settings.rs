//! What the arguments mean on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_bake::Registries;
use kiln_config::{VariableOrigin, VariableValue};
use kiln_model::EnvName;

use crate::args;
use crate::failure::Failure;

/// Where bakes do what they do, below the data root.
pub(crate) fn work(root: &Path) -> Result<PathBuf, Failure> {
    let work = root.join("work");
    match std::fs::create_dir_all(&work) {
        Ok(()) => Ok(work),
        Err(source) => Err(Failure::Root { path: work, source }),
    }
}

/// A definition to read, and for what.
#[derive(Clone, Debug)]
pub(crate) struct DefinitionSettings {
    /// The file itself.
    pub(crate) file: PathBuf,
    pub(crate) environment: EnvName,
    pub(crate) variables: BTreeMap<String, VariableValue>,
}

impl DefinitionSettings {
    pub(crate) fn new(path: &Path, environment: EnvName, arguments: args::Variables) -> Self {
        let file = if path.is_dir() {
            path.join("kiln.hcl")
        } else {
            path.to_owned()
        };
        // Later ones win: the environment, then the arguments from left to right.
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(text)) = (name.to_str(), value.to_str()) else {
                continue;
            };
            if let Some(name) = name.strip_prefix("KILN_VAR_") {
                let value = VariableValue {
                    text: text.to_owned(),
                    origin: VariableOrigin::Environment,
                };
                variables.insert(name.to_owned(), value);
            }
        }
        for (name, text) in arguments.variables {
            variables.insert(
                name,
                VariableValue {
                    text,
                    origin: VariableOrigin::Argument,
                },
            );
        }
        Self {
            file,
            environment,
            variables,
        }
    }

    /// Where the definition is: what it copies is relative to it.
    pub(crate) fn folder(&self) -> &Path {
        match self.file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }
}

impl From<args::Definition> for DefinitionSettings {
    fn from(arguments: args::Definition) -> Self {
        let args::Definition {
            file,
            environment,
            variables,
        } = arguments;
        Self::new(&file, environment.env, variables)
    }
}

/// The data root, as other processes will find it too.
pub(crate) fn root(arguments: args::Root) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(&arguments.root).map_err(|source| Failure::Root {
        path: arguments.root.clone(),
        source,
    })?;
    // The path of a unix socket has 108 bytes with its end (unix(7)), and the longest below the root is
    // `/run/proxy/<pid>.sock`.
    if path.as_os_str().len() > 80 {
        return Err(Failure::RootTooLong { path });
    }
    Ok(path)
}

/// Baking and running need mounts, namespaces and cgroups.
pub(crate) fn need_root(what: &'static str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Failure::NotRoot { what })
    }
}

/// How registries are asked: with the logins that docker and podman keep.
pub(crate) fn registries(pull: bool, insecure: Vec<String>) -> Registries {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    Registries {
        auth_files: [
            variable("REGISTRY_AUTH_FILE"),
            variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
            docker.map(|folder| folder.join("config.json")),
        ]
        .into_iter()
        .flatten()
        .collect(),
        insecure,
        pull,
    }
}
