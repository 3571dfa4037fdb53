//! What is typed about what runs.

use std::path::PathBuf;

use clap::Args as Group;
use kiln_model::{EnvName, ServiceName};

use super::{Definition, Environment, Json, Root, Variables};

#[derive(Debug, Group)]
pub(crate) struct Up {
    /// The folder with kiln.hcl, or the definition itself
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) path: PathBuf,
    /// Return once everything is ready
    #[arg(long, short)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) environment: Environment,
    #[command(flatten)]
    pub(crate) variables: Variables,
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Rollback {
    pub(crate) service: ServiceName,
    /// The number of the release to go back to, instead of the one before
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<u64>,
    #[command(flatten)]
    pub(crate) environment: Environment,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Status {
    /// Only this environment
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<EnvName>,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct History {
    /// Only this service
    pub(crate) service: Option<ServiceName>,
    /// Only this environment
    #[arg(long, value_name = "NAME")]
    pub(crate) env: Option<EnvName>,
    /// Check that the journal is as it was written, and fail where it was changed
    ///
    /// Each entry has a hash of itself and of the one before it. All of them are read.
    #[arg(long, conflicts_with_all = ["service", "env"])]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Logs {
    pub(crate) service: ServiceName,
    /// Go on with what is printed from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many lines of each instance to begin with
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    pub(crate) lines: u32,
    /// Only this instance
    #[arg(long, value_name = "ID", value_parser = instance)]
    pub(crate) instance: Option<String>,
    #[command(flatten)]
    pub(crate) environment: Environment,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// An id goes into a query as it is.
fn instance(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    good.then(|| text.to_owned())
        .ok_or_else(|| "`kiln status` lists the ids of instances".to_owned())
}
