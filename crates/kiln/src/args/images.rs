//! What is typed about images that were baked.

use std::path::PathBuf;

use clap::{Args as Group, Subcommand};

use super::{Definition, Json, Root};

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

fn size(text: &str) -> Result<u64, String> {
    kiln_config::units::size(text)
        .ok_or_else(|| "write a whole number and its unit: 500MiB, 10GiB".to_owned())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    kiln_config::units::duration(text)
        .ok_or_else(|| "write whole numbers and their units: 7d, 12h, 1h30m".to_owned())
}
