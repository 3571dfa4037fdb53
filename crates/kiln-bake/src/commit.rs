//! What callers know of the Git commit that is baked.

/// A definition in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// The whole hexadecimal name.
    pub sha: String,
    /// Something of what is baked is not as the commit has it.
    pub dirty: bool,
    /// The path of the definition in the repository.
    pub definition: String,
}

/// A Dockerfile and its context in a Git repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The whole hexadecimal name of the commit.
    pub sha: String,
    /// Something of what is baked is not as the commit has it.
    pub dirty: bool,
    /// The first of what made it so.
    pub changed: Option<String>,
    /// Paths in the repository.
    pub dockerfile: String,
    pub context: String,
}
