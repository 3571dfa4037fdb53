//! What is typed to bake, and to look at a definition without baking it.

use std::path::PathBuf;

use clap::Args as Group;
use kiln_oci::Output;

use super::{Definition, Json, Root, variable};
use crate::granted::{Entitlement, Network};
use crate::progress::Progress;

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
    #[arg(long)]
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
