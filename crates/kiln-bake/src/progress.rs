//! What a bake tells of itself while it goes on, and in the end.

use kiln_model::Digest;

/// What a bake is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BakeProgress {
    /// The archive is asked what it has.
    Resolving {
        suite: String,
    },
    /// A base that is elsewhere is looked at, and brought here.
    Importing {
        image: String,
    },
    /// A file that a Dockerfile names by its address is looked for.
    Downloading {
        url: String,
    },
    Fetching {
        done: usize,
        of: usize,
    },
    /// A step begins; one that is cached ends at once.
    Step {
        name: String,
        cached: bool,
    },
    /// A line that a step said. Of a Dockerfile, several may be carried out at the same time.
    Said {
        step: String,
        line: String,
    },
    /// A shell follows where a step failed; or why it can't.
    Shell {
        why: String,
    },
    /// A step has its layer.
    Ended(StepReport),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    pub name: String,
    pub cached: bool,
    pub duration_ms: u64,
    /// `None`: a test, which makes no layer.
    pub key: Option<Digest>,
    /// What changed since the last bake of the image; empty for a cached step, and while the bake goes on.
    pub reasons: Vec<String>,
}

/// For the lines of a step's programs.
pub(crate) fn said(step: &str, progress: &mut dyn FnMut(BakeProgress)) -> impl FnMut(&str) {
    move |line| {
        progress(BakeProgress::Said {
            step: step.to_owned(),
            line: line.to_owned(),
        })
    }
}
