//! `kiln fmt`: definitions in their one form.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use kiln_config::{Source, format};

use crate::failure::{Exit, Failure};
use crate::{args, definition, output};

pub(crate) fn run(args: args::Fmt) -> Result<Exit, Failure> {
    let mut changes = false;
    for path in args.paths {
        if path == Path::new("-") {
            changes |= standard_input(args.check)?;
            continue;
        }
        let files = if path.is_dir() {
            let mut files = vec![match path.as_path() {
                here if here == Path::new(".") => PathBuf::from("kiln.hcl"),
                folder => folder.join("kiln.hcl"),
            }];
            files.extend(definition::further_files(&path)?);
            files
        } else {
            vec![path]
        };
        for file in files {
            let source = Source {
                name: file.display().to_string(),
                text: definition::text(&file)?,
            };
            let made = format(&source)?;
            if made == source.text {
                continue;
            }
            changes = true;
            if !args.check {
                kiln_fs::replace_in_place(&file, made.as_bytes()).map_err(|source| {
                    Failure::WriteDefinition {
                        path: file.clone(),
                        source,
                    }
                })?;
            }
            output::line(&source.name)?;
        }
    }
    Ok(if changes && args.check {
        Exit::Changes
    } else {
        Exit::Done
    })
}

fn standard_input(check: bool) -> Result<bool, Failure> {
    let name = "standard input";
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|source| Failure::ReadDefinition {
            path: PathBuf::from(name),
            source,
        })?;
    let source = Source {
        name: name.to_owned(),
        text,
    };
    let made = format(&source)?;
    if !check {
        let mut out = std::io::stdout().lock();
        out.write_all(made.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Failure::Output)?;
    }
    Ok(made != source.text)
}
