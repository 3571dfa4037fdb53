//! `kiln bake`: definition, or Dockerfile → images in the store.

use std::path::PathBuf;

use kiln_bake::StepReport;
use kiln_model::ImageName;
use kiln_oci::Output;
use serde::Serialize;

use crate::baking::Baking;
use crate::dockerfile::DockerfileSettings;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
use crate::progress::Reporting;
use crate::{args, definition, settings};

#[derive(Serialize)]
struct Answer {
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    name: String,
    tag: String,
    digest: kiln_model::Digest,
    steps: Vec<Step>,
    /// Steps whose result may be another one another day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    used_network: Vec<String>,
}

#[derive(Serialize)]
struct Step {
    name: String,
    cached: bool,
    duration_ms: u64,
    /// With `--explain`: what changed since the last bake.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<Vec<String>>,
}

pub(crate) fn run(args: args::Bake) -> Result<Exit, Failure> {
    if let Some(path) = args.dockerfile.dockerfile.clone() {
        return dockerfile(path, args);
    }
    settings::need_root("`kiln bake`")?;
    kiln_engine::Engine::check()?;
    let root = settings::root(args.root)?;
    let definition = definition::read(args.definition.into())?;
    let audience = Audience::of(args.json.json);
    let reporting = Reporting {
        audience,
        progress: args.progress,
    };
    let names = definition.images(&args.images)?;
    let only_one = |output: &&Output| !output.takes_several();
    if let Some(output) = args
        .output
        .iter()
        .find(only_one)
        .filter(|_| names.len() > 1)
    {
        return Err(Failure::OneOutput {
            path: output.path().to_owned(),
            images: names.iter().map(ImageName::to_string).collect(),
        });
    }
    let baking =
        Baking::new(&root, &definition, reporting)?.without_cache(args.dockerfile.no_cache);
    let baked = Interrupts::catch()?.during(
        || {
            let baked = baking.all(&names)?;
            for output in &args.output {
                baking.write(&baked, output)?;
            }
            Ok(baked)
        },
        || "the steps that ended are kept for the next bake".to_owned(),
    )?;
    if audience == Audience::Program {
        let images = baked
            .into_iter()
            .map(|(name, image)| Image {
                name: name.to_string(),
                tag: image.tag,
                digest: image.digest,
                steps: steps(image.steps, args.explain),
                used_network: image.networked,
            })
            .collect();
        output::json(&Answer { images })?;
    } else if args.explain {
        for (name, image) in &baked {
            explained(name.as_str(), &image.steps)?;
        }
    }
    Ok(Exit::Done)
}

/// Says of each step why it was done, or that it was not.
fn explained(image: &str, steps: &[StepReport]) -> Result<(), Failure> {
    for step in steps.iter().filter(|step| step.key.is_some()) {
        if step.cached {
            output::line(&format!("{image}: {}: from the cache", step.name))?;
            continue;
        }
        output::line(&format!("{image}: {}: done anew", step.name))?;
        for reason in &step.reasons {
            output::line(&format!("  {reason}"))?;
        }
    }
    Ok(())
}

fn steps(steps: Vec<StepReport>, explain: bool) -> Vec<Step> {
    steps
        .into_iter()
        .map(|step| Step {
            name: step.name,
            cached: step.cached,
            duration_ms: step.duration_ms,
            reasons: explain.then_some(step.reasons),
        })
        .collect()
}

fn dockerfile(path: PathBuf, args: args::Bake) -> Result<Exit, Failure> {
    let explain = args.explain;
    let mut settings = DockerfileSettings::new(path, args.dockerfile, args.images)?;
    let interrupts = Interrupts::catch()?;
    // To read a Dockerfile needs no secret, unless its repository does.
    if !settings.check || settings.is_repository() {
        settings.take_granted()?;
    }
    if settings.is_packed() {
        settings::need_root("a context that is unpacked first")?;
        let root = settings::root(args.root.clone())?;
        interrupts.during(
            || settings.unpack(&root),
            || "nothing is baked yet".to_owned(),
        )?;
    }
    let dockerfile = settings.read()?;
    if settings.check {
        // Without a data root nothing is known of the bases, and that is no error.
        let root = settings::root(args.root).ok();
        let warnings = settings.lint(&dockerfile, root.as_deref())?;
        for warning in &warnings {
            output::aside(&warning.render(&dockerfile.file));
        }
        return Ok(if warnings.is_empty() {
            Exit::Done
        } else {
            Exit::Failed
        });
    }
    settings::need_root("`kiln bake`")?;
    kiln_engine::Engine::check()?;
    let root = settings::root(args.root)?;
    let audience = Audience::of(args.json.json);
    let reporting = Reporting {
        audience,
        progress: args.progress,
    };
    let baked = interrupts.during(
        || settings.bake(&root, &dockerfile, &args.output, reporting),
        || "the steps that ended are kept for the next bake".to_owned(),
    )?;
    if audience == Audience::Program {
        let images = vec![Image {
            name: settings.tag.unwrap_or_default(),
            tag: baked.tag,
            digest: baked.digest,
            steps: steps(baked.steps, explain),
            used_network: baked.networked,
        }];
        output::json(&Answer { images })?;
    } else if explain {
        explained(&baked.tag, &baked.steps)?;
    }
    Ok(Exit::Done)
}
