//! What is typed. Nothing is looked up here: that is for [`crate::settings`].

mod bake;
mod images;
mod processes;
mod rollouts;

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand};
use kiln_model::EnvName;

pub(crate) use bake::*;
pub(crate) use images::*;
pub(crate) use processes::*;
pub(crate) use rollouts::*;

/// Immutable infrastructure on one machine: bake, replace, switch, roll back.
///
/// Exit codes: 0 done; 1 failed; 2 changes found (`plan`, `fmt --check`, `lock --check`); 3 rolled out badly and rolled back; 64 usage;
/// 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, propagate_version = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bake, start and route everything of a definition
    ///
    /// Starts kiln on the data root unless it runs there already, bakes the images, applies the definition and
    /// prints the address of each service. Then it follows their logs until Ctrl-C, which ends everything that this
    /// command started. Ctrl-C before that ends the command alone, and it says what goes on running.
    Up(Up),
    /// Stop everything that runs on the data root
    ///
    /// Requests in flight are finished first. The store and the journal stay. Where a process of kiln does not answer, it is
    /// killed, and another one ends what runs.
    Down(Down),
    /// Check a definition, in all its environments
    ///
    /// With `--json`, what is wrong is printed too: a summary, what was expected, what to type and the place of each.
    Validate(Validate),
    /// Lay definitions out in their one form
    ///
    /// Indentation, blanks and the alignment of `=` and comments; nothing else changes. Prints the names of the files
    /// that it changed.
    Fmt(Fmt),
    /// Bake images, of a definition or of a Dockerfile
    ///
    /// With --dockerfile no definition is needed: `kiln bake --dockerfile Dockerfile --tag api:1 .`
    Bake(Box<Bake>),
    /// Write the exact packages of images to kiln.lock, and update them
    ///
    /// Without --update only what the definition asks for and the lock does not have is added, and nothing else changes. With it,
    /// packages get the archive's present versions. Shows what changed; security fixes are named.
    Lock(Lock),
    /// List the images of the store; `kiln images prune` removes what nothing needs
    Images(Images),
    /// Show all that is known of an image: layers with their steps, configuration, commit, tests, releases
    Inspect(Inspect),
    /// Show what changed from one image to another: packages, configuration, files, layers
    ///
    /// Times of files are not compared.
    Diff(Diff),
    /// Print what is in an image: its packages with versions, licences and sources, as SPDX 2.3 JSON
    Sbom(Sbom),
    /// Bake an image again from its commit, in other circumstances, and show what differs
    ///
    /// The commit is read from the Git repository of the definition. The second bake has an empty cache, another path, user, locale,
    /// time zone, umask and clock, and one processor. Exits with 0 when it gives the same digest, and with 1 when something
    /// differs, of which each path is shown with its cause.
    Verify(Verify),
    /// Show what an apply would change, and why
    ///
    /// Exits with 0 when nothing would change, with 2 when something would, with 1 after an error.
    Plan(Plan),
    /// Bake, then make what runs what the definition says
    ///
    /// Never asks. A new release takes over when it is ready; a bad one is rolled back and the command exits with 3.
    Apply(Apply),
    /// Go back to the release before, or to another one
    ///
    /// Within its warm window that is one switch.
    Rollback(Rollback),
    /// Show what runs
    Status(Status),
    /// Show the releases of services and what happened to them
    History(History),
    /// Show what the instances of a service printed
    ///
    /// On a terminal, control characters other than tabs are shown as `^[` and the like, so that what an instance prints can't
    /// change the terminal. Elsewhere, as in a pipe, they stay.
    Logs(Logs),
    /// Run the controller in the foreground
    ///
    /// `kiln supervise` does it for you.
    Serve(Serve),
    /// Keep kiln running: its listening sockets, the controller and the proxy
    ///
    /// This is what systemd starts. Ends on SIGTERM; instances go on running.
    Supervise(Supervise),
    #[command(hide = true)]
    Proxy(Proxy),
    #[command(hide = true)]
    Rebake(Rebake),
}

#[derive(Clone, Debug, Group)]
pub(crate) struct Root {
    /// The data root: one kiln, its store, journal and instances
    #[arg(
        long,
        env = "KILN_ROOT",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "/var/lib/kiln"
    )]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Group)]
pub(crate) struct Environment {
    /// The environment
    #[arg(long, value_name = "NAME", default_value = "dev")]
    pub(crate) env: EnvName,
}

#[derive(Debug, Group)]
pub(crate) struct Variables {
    /// The value of a variable of the definition; KILN_VAR_NAME in the environment does the same
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) variables: Vec<(String, String)>,
}

#[derive(Debug, Group)]
pub(crate) struct Definition {
    /// The definition, or the folder with its kiln.hcl
    #[arg(long, short, value_name = "PATH", default_value = "kiln.hcl")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) environment: Environment,
    #[command(flatten)]
    pub(crate) variables: Variables,
}

#[derive(Debug, Group)]
pub(crate) struct Json {
    /// Print JSON; progress goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::Args;

    /// `docs/cli.md` is what the commands themselves say.
    /// After a change that is meant: `KILN_BLESS=1 cargo test -p kiln`, and read the difference.
    #[test]
    fn the_document_is_the_help_text() {
        let mut found = String::from(
            "# The command line\n\nWhat `kiln COMMAND --help` prints; a test keeps this page equal to it.\n\
             What a definition may say is in [definition.md](definition.md).\n",
        );
        let mut command = Args::command().disable_help_subcommand(true);
        command.build();
        let mut add = |title: &str, help: String| {
            let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
            found.push_str(&format!(
                "\n## `{title}`\n\n```text\n{}\n```\n",
                lines.join("\n").trim_end()
            ));
        };
        add("kiln", command.render_long_help().to_string());
        for subcommand in command
            .get_subcommands_mut()
            .filter(|command| !command.is_hide_set())
        {
            let title = format!("kiln {}", subcommand.get_name());
            add(&title, subcommand.render_long_help().to_string());
            for inner in subcommand.get_subcommands_mut() {
                let title = format!("{title} {}", inner.get_name());
                add(&title, inner.render_long_help().to_string());
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
        if std::env::var_os("KILN_BLESS").is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == written,
            "docs/cli.md is not what the commands say:\n{found}"
        );
    }

    #[test]
    fn arguments_are_checked_where_they_are_typed() {
        Args::command().debug_assert();
        for wrong in [
            &["kiln"][..],
            &["kiln", "aply"],
            &["kiln", "apply", "--env", "Not A Name"],
            &["kiln", "apply", "--var", "no-equals-sign"],
            &["kiln", "rollback"],
            &["kiln", "rollback", "api", "--to", "latest"],
            &["kiln", "logs", "api", "--instance", "a&b=c"],
            &["kiln", "down", "--json"],
            &["kiln", "bake", "--output", "zip:x"],
            &["kiln", "bake", "--tag", "a:1"],
            &["kiln", "images", "prune", "--keep-storage", "10"],
            &["kiln", "images", "prune", "--older-than", "week"],
            &["kiln", "bake", "--dockerfile", "D", "--base", "debian"],
        ] {
            assert!(Args::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
        for right in [
            &["kiln", "up", "examples/hello", "--detach"][..],
            &["kiln", "apply", "--var", "a=b=c", "--var", "d=", "--json"],
            &["kiln", "rollback", "api", "--to", "7"],
            &["kiln", "logs", "-f", "-n", "5", "api"],
            &[
                "kiln",
                "bake",
                "--output",
                "oci:out",
                "--output",
                "tar:out.tar",
            ],
        ] {
            assert!(Args::try_parse_from(right).is_ok(), "{right:?}");
        }
    }
}
