//! `kiln bake`: definition → images in the store.

use kiln_model::ImageName;
use kiln_oci::Output;
use serde::Serialize;

use crate::baking::Baking;
use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::output::{self, Audience};
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
}

#[derive(Serialize)]
struct Step {
    name: String,
    cached: bool,
    duration_ms: u64,
}

pub(crate) fn run(args: args::Bake) -> Result<Exit, Failure> {
    settings::need_root("`kiln bake`")?;
    kiln_engine::Engine::check()?;
    let root = settings::root(args.root)?;
    let definition = definition::read(args.definition.into())?;
    let audience = Audience::of(args.json.json);
    let names = if args.images.is_empty() {
        definition.spec.images.keys().cloned().collect()
    } else {
        args.images
    };
    let only_one = |output: &&Output| !matches!(output, Output::OciLayout(_));
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
    let baking = Baking::new(&root, &definition, audience)?;
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
                steps: image
                    .steps
                    .into_iter()
                    .map(|step| Step {
                        name: step.name,
                        cached: step.cached,
                        duration_ms: step.duration_ms,
                    })
                    .collect(),
            })
            .collect();
        output::json(&Answer { images })?;
    }
    Ok(Exit::Done)
}
