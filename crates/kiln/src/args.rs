//! What is typed. Nothing is looked up here: that is for [`crate::settings`].

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand};
use kiln_model::{EnvName, ServiceName};
use kiln_oci::Output;

use crate::granted::{Entitlement, Network};
use crate::progress::Progress;

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
    /// Requests in flight are finished first. The store and the journal stay.
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
pub(crate) struct Validate {
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Fmt {
    /// Definitions, folders with a kiln.hcl and all *.kiln.hcl in them, or `-` for standard input
    #[arg(value_name = "PATH", default_value = ".")]
    pub(crate) paths: Vec<PathBuf>,
    /// Change nothing, and exit with 2 when something would change
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Group)]
pub(crate) struct Bake {
    /// Only these images; with --dockerfile, where the files that can be copied are [default: .]
    ///
    /// A context is a folder, a tar (compressed or not), `-` for a tar on standard input, or a Git repository
    /// (https://host/path.git#REFERENCE:FOLDER). But for a folder, the Dockerfile is a file of the context.
    #[arg(value_name = "IMAGE|CONTEXT")]
    pub(crate) images: Vec<String>,
    /// Write the image as well: oci:DIR, oci-archive:FILE, docker-archive:FILE or tar:FILE (its files alone)
    ///
    /// May be given several times. Only a layout's folder (oci:DIR) takes more than one image. Layers are in zstd; for
    /// tools that do not know it, `oci:DIR,compression=gzip` and `oci-archive:FILE,compression=gzip` write another image
    /// of the same files.
    #[arg(long, value_name = "TYPE:PATH")]
    pub(crate) output: Vec<Output>,
    /// Say of each step whether it was cached, and what changed since the last bake where it was not
    #[arg(long)]
    pub(crate) explain: bool,
    /// How to tell what is done: auto, plain (whole lines, with what the steps say) or quiet (warnings and errors alone)
    ///
    /// auto draws a line for each step that is carried out on a terminal, and prints whole lines elsewhere.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) progress: Progress,
    #[command(flatten)]
    pub(crate) dockerfile: Dockerfile,
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Dockerfile {
    /// Bake this Dockerfile, with no definition
    #[arg(long, value_name = "FILE")]
    pub(crate) dockerfile: Option<PathBuf>,
    /// The tag of the Dockerfile's image
    #[arg(long, short, value_name = "TAG", requires = "dockerfile")]
    pub(crate) tag: Option<String>,
    /// The value of an ARG; without a value, that of the environment
    #[arg(
        long = "build-arg",
        value_name = "NAME[=VALUE]",
        requires = "dockerfile"
    )]
    pub(crate) build_args: Vec<String>,
    /// The stage to bake instead of the last one
    #[arg(long, value_name = "STAGE", requires = "dockerfile")]
    pub(crate) target: Option<String>,
    /// What the image NAME of a FROM means: a tag or digest that `kiln images` lists, oci:DIR, oci-archive:FILE or
    /// docker-archive:FILE (with :TAG or @DIGEST where it has several), or the name of another image
    #[arg(long = "base", value_name = "NAME=REF", value_parser = variable, requires = "dockerfile")]
    pub(crate) bases: Vec<(String, String)>,
    /// Ask the registry again what the tags of bases mean now
    #[arg(long, requires = "dockerfile")]
    pub(crate) pull: bool,
    /// A registry that is asked without TLS, as those of this machine are
    #[arg(
        long = "insecure-registry",
        value_name = "HOST[:PORT]",
        requires = "dockerfile"
    )]
    pub(crate) insecure_registries: Vec<String>,
    /// A folder or Git repository that FROM NAME and `--from=NAME` mean, or an image: docker-image://NAME or oci-layout://DIR[:TAG]
    #[arg(long = "build-context", value_name = "NAME=DIR", value_parser = variable, requires = "dockerfile")]
    pub(crate) build_contexts: Vec<(String, String)>,
    /// The platform, which has to be this machine's
    #[arg(long, value_name = "PLATFORM", requires = "dockerfile")]
    pub(crate) platform: Option<String>,
    /// A secret for RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE
    ///
    /// It is in no layer, no key and no record of the bake.
    #[arg(long = "secret", value_name = "SECRET", requires = "dockerfile")]
    pub(crate) secrets: Vec<String>,
    /// An SSH agent for RUN --mount=type=ssh: its socket, without one that of SSH_AUTH_SOCK, or one that has the keys of these files
    #[arg(long, value_name = "ID[=SOCKET|KEY,…]", requires = "dockerfile")]
    pub(crate) ssh: Vec<String>,
    /// What a RUN may do beyond its container: --network=host, --security=insecure
    #[arg(
        long,
        value_name = "RIGHT",
        value_delimiter = ',',
        requires = "dockerfile"
    )]
    pub(crate) allow: Vec<Entitlement>,
    /// Open a shell in the file system of a RUN that fails, then fail
    #[arg(long, requires = "dockerfile")]
    pub(crate) shell_on_error: bool,
    /// What looks secret and is none, as the error names it
    #[arg(
        long = "allow-leak",
        value_name = "RULE:PLACE",
        requires = "dockerfile"
    )]
    pub(crate) allow_leaks: Vec<String>,
    /// The network of the RUNs
    #[arg(
        long,
        value_name = "NETWORK",
        default_value = "default",
        requires = "dockerfile"
    )]
    pub(crate) network: Network,
    /// Do every step anew
    #[arg(long, requires = "dockerfile")]
    pub(crate) no_cache: bool,
    /// Only read the Dockerfile, and show what is wrong and what is doubtful in it
    #[arg(long, requires = "dockerfile")]
    pub(crate) check: bool,
}

#[derive(Debug, Group)]
pub(crate) struct Lock {
    /// Only these images
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Update these packages, with what their new versions need; without a name, all
    #[arg(long, value_name = "PACKAGE", num_args = 0..)]
    pub(crate) update: Option<Vec<String>>,
    /// Write nothing, and exit with 2 when something would change
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Images {
    #[command(subcommand)]
    pub(crate) command: Option<ImagesCommand>,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Remove what nothing needs: images without a tag, and what is kept to bake faster
    ///
    /// Needed is what a tag names, what the journal has a release of, what runs, and what a bake uses at this moment: bakes
    /// go on meanwhile. Without --keep-storage and --older-than all else is removed, packages that were fetched and the
    /// caches of RUN --mount=type=cache included.
    Prune(Prune),
    /// Take tags away: what only they needed goes with the next `kiln images prune`
    ///
    /// A tag is given once: one that was taken away can be given to the same image again, and to no other. What runs, and
    /// what can be returned to, is not touched.
    Rm(RemoveTags),
}

#[derive(Debug, Group)]
pub(crate) struct RemoveTags {
    /// As `kiln images` lists them
    #[arg(required = true, value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Prune {
    /// Keep what was used last, up to this size: 10GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) keep_storage: Option<u64>,
    /// Keep what was used within this time: 7d, 12h
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub(crate) older_than: Option<std::time::Duration>,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Inspect {
    /// A tag, a digest, or the first digits of one; a name alone is its newest tag
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Diff {
    /// A tag, a digest, or the first digits of one; a name alone is its newest tag
    pub(crate) from: String,
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Sbom {
    /// A tag, a digest, or the first digits of one; a name alone is its newest tag
    pub(crate) image: String,
    /// Print where it came from instead: commit, lock, steps and packages, as an in-toto statement (SLSA provenance 1)
    #[arg(long)]
    pub(crate) provenance: bool,
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Verify {
    /// A tag, a digest, or the first digits of one; a name alone is its newest tag
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) definition: Definition,
    #[command(flatten)]
    pub(crate) root: Root,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Group)]
pub(crate) struct Rebake {
    pub(crate) spec: PathBuf,
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

#[derive(Debug, Group)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Supervise {
    /// Leave the terminal's session first
    #[arg(long, hide = true)]
    pub(crate) new_session: bool,
    #[command(flatten)]
    pub(crate) root: Root,
}

#[derive(Debug, Group)]
pub(crate) struct Proxy {
    /// Who the proxy is once its files are open
    #[arg(long, default_value_t = PROXY_ID)]
    pub(crate) uid: u32,
    #[arg(long, default_value_t = PROXY_ID)]
    pub(crate) gid: u32,
    #[command(flatten)]
    pub(crate) root: Root,
}

/// In the range that systemd's "Users, Groups, UIDs and GIDs" calls unused (60706 to 61183), so that it is no
/// other program's: `nobody` is shared with anyone.
const PROXY_ID: u32 = 61_007;

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    kiln_config::units::size(text)
        .ok_or_else(|| "write a whole number and its unit: 500MiB, 10GiB".to_owned())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    kiln_config::units::duration(text)
        .ok_or_else(|| "write whole numbers and their units: 7d, 12h, 1h30m".to_owned())
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
