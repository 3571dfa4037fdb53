//! Which names of images a Dockerfile has, before anything of it is baked.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::dockerfile::{Action, Dockerfile};

use super::scope::Scope;
use crate::arch;

/// The arguments that every Dockerfile has before its first.
pub(super) fn predefined(target: Option<&str>) -> BTreeMap<String, String> {
    let arch = arch::arch();
    let platform = format!("linux/{arch}");
    let of_platform = [
        ("PLATFORM", platform.as_str()),
        ("OS", "linux"),
        ("ARCH", arch),
        ("VARIANT", ""),
    ];
    let mut globals = BTreeMap::new();
    for kind in ["TARGET", "BUILD"] {
        for (name, value) in of_platform {
            globals.insert(format!("{kind}{name}"), value.to_owned());
        }
    }
    let stage = target.unwrap_or("default").to_owned();
    globals.insert("TARGETSTAGE".to_owned(), stage);
    globals
}

/// The names that may be images, some of which are stages; what can't be told is left out, and the bake's to report.
pub fn images_named(
    file: &Dockerfile,
    build_args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> BTreeSet<String> {
    let mut globals = predefined(target);
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
                Action::Run(run) => names.extend(run.mounted_from()),
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
        let text = "ARG V=12\nARG N=x:$V\nFROM $N AS a\nRUN --mount=type=bind,From=tools,target=/t true\n\
                    COPY --from=other /a /b\nFROM a\nCOPY c d\nFROM base-$TARGETSTAGE$TARGETVARIANT\n";
        let file = Dockerfile::parse(Source {
            name: String::new(),
            text: text.to_owned(),
        })
        .unwrap();
        let args = BTreeMap::from([("V".to_owned(), "13".to_owned())]);
        let found = images_named(&file, &args, Some("b"));
        let expected = ["a", "base-b", "other", "tools", "x:13"].map(str::to_owned);
        assert_eq!(found, BTreeSet::from(expected));
    }
}
