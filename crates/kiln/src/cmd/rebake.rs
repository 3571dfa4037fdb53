//! `kiln rebake`: the second bake of `kiln verify`, in a process that is in other circumstances than the first.

use std::path::PathBuf;

use kiln_bake::{BakeRequest, Lock, bake};
use kiln_model::{Digest, ImageSpec};
use kiln_oci::Store;
use rustix::fs::Mode;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::baking::Live;
use crate::failure::{Exit, Failure};
use crate::{args, output, rollout};

#[derive(Serialize, Deserialize)]
pub(super) struct Rebake {
    pub(super) root: PathBuf,
    pub(super) context: PathBuf,
    pub(super) image: ImageSpec,
    pub(super) lock: String,
    pub(super) move_clock: i32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Rebaked {
    pub(super) digest: Digest,
    pub(super) steps: Vec<String>,
    pub(super) processors: usize,
}

pub(crate) fn run(args: args::Rebake) -> Result<Exit, Failure> {
    let failed = |source| Failure::Root {
        path: args.spec.clone(),
        source,
    };
    let bytes = std::fs::read(&args.spec).map_err(failed)?;
    let Rebake {
        root,
        context,
        image,
        lock,
        move_clock,
    } = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    one_processor();
    let lock = Lock::parse(&lock).map_err(|error| Failure::Lock {
        path: context.join("kiln.lock"),
        source: Box::new(error),
    })?;
    let work = root.join("work");
    std::fs::create_dir_all(&work).map_err(failed)?;
    let request = BakeRequest {
        image: &image,
        context: &context,
        lock: Some(&lock),
        work: &work,
        commit: None,
        now: rollout::now(),
        move_clock: Some(move_clock),
    };
    let mut live = Live::new(image.name.as_str(), std::io::stderr(), None);
    let baked = bake(&Store::open(&root)?, &request, &mut |progress| {
        if let Some(line) = live.tell(progress) {
            output::aside(&line);
        }
    });
    let baked = baked.map_err(|source| Failure::Bake {
        image: image.name.to_string(),
        source: Box::new(source),
    })?;
    output::json(&Rebaked {
        digest: baked.digest,
        steps: baked.steps.into_iter().map(|step| step.name).collect(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
    })?;
    Ok(Exit::Done)
}

/// Where it can't be, the second bake has as many as the first.
fn one_processor() {
    let Ok(mine) = sched_getaffinity(None) else {
        return;
    };
    if let Some(last) = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|number| mine.is_set(*number))
    {
        let mut only = CpuSet::new();
        only.set(last);
        let _ = sched_setaffinity(None, &only);
    }
}
