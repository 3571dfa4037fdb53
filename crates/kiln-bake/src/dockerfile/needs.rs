//! Which names of images a Dockerfile has, before anything of it is baked.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::dockerfile::{Action, Dockerfile};

use super::scope::Scope;
use crate::archive;

/// The names that may be images, some of which are stages; what can't be told is left out, and the bake's to report.
pub fn images_named(file: &Dockerfile, build_args: &BTreeMap<String, String>) -> BTreeSet<String> {
    let arch = archive::arch();
    let mut globals: BTreeMap<String, String> = ["TARGET", "BUILD"]
        .into_iter()
        .flat_map(|kind| {
            [
                (format!("{kind}ARCH"), arch.to_owned()),
                (format!("{kind}OS"), "linux".to_owned()),
                (format!("{kind}PLATFORM"), format!("linux/{arch}")),
            ]
        })
        .collect();
    for instruction in &file.args {
        let Action::Arg(args) = &instruction.action else {
            continue;
        };
        for (name, default) in args {
            let default = default
                .as_ref()
                .and_then(|text| Scope::new(&[], &globals).expand(file, text).ok());
            if let Some(value) = build_args.get(name).cloned().or(default) {
                globals.insert(name.clone(), value);
            }
        }
    }
    let mut names = BTreeSet::new();
    for stage in &file.stages {
        names.extend(
            Scope::new(&[], &globals)
                .expand(file, &stage.from.image)
                .ok(),
        );
        for instruction in &stage.instructions {
            match &instruction.action {
                Action::Copy(copy) | Action::Add(copy) => {
                    names.extend(copy.from.iter().map(|from| from.text.clone()));
                }
                Action::Run(run) => {
                    let values = run.flags.iter().filter_map(|flag| flag.value.as_ref());
                    let from = values.flat_map(|value| {
                        let keys = value.text.split(',');
                        keys.filter_map(|key| key.strip_prefix("from=").map(str::to_owned))
                    });
                    names.extend(from);
                }
                _ => {}
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use kiln_config::Source;

    use super::*;

    #[test]
    fn names_are_found_wherever_an_image_may_stand() {
        let text = "ARG V=12\nARG N=x:$V\nFROM $N AS a\nRUN --mount=type=bind,from=tools,target=/t true\n\
                    COPY --from=other /a /b\nFROM a\nCOPY c d\n";
        let file = Dockerfile::parse(Source {
            name: String::new(),
            text: text.to_owned(),
        })
        .unwrap();
        let args = BTreeMap::from([("V".to_owned(), "13".to_owned())]);
        let found = images_named(&file, &args);
        let expected = ["a", "other", "tools", "x:13"].map(str::to_owned);
        assert_eq!(found, BTreeSet::from(expected));
    }
}
