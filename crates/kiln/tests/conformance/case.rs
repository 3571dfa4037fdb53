//! One case: a Dockerfile and its context, as one text.
//!
//! Git keeps neither modes nor owners, empty folders, pipes or hard links, and a checkout's umask changes what it keeps. So a
//! case is a file: a line or more that say what it shows, `args:` with what is given to the bake, and then the files, each
//! after a line that names it:
//!
//! ```text
//! -- NAME [MODE] [crlf] [bom] [bare] --     a file; `bare`: without the last line's end
//! -- NAME [MODE] base64 --                  a file of bytes
//! -- NAME/ [MODE] --                        a folder
//! -- NAME -> TARGET --                      a symbolic link
//! -- NAME = OTHER --                        a hard link
//! -- NAME | --                              a pipe
//! ```
//!
//! `@CONTEXT/NAME` is a file of the named context CONTEXT.
//!
//! Of other people's Dockerfiles (`KILN_CASES=FOLDER`), a folder with a `Dockerfile` in it is a case too, and its own context.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What is given to the bake, as `kiln bake` has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) build_args: Vec<String>,
    pub(crate) target: Option<String>,
    /// Below the context.
    pub(crate) dockerfile: String,
    pub(crate) contexts: Vec<String>,
    /// `id=NAME,src=FILE`, the file below the context.
    pub(crate) secrets: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// `AREA/NAME`
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) options: Options,
    files: Vec<(String, String)>,
    /// The context, where it is a folder.
    folder: Option<PathBuf>,
}

impl Case {
    /// Where what the peer makes of it is kept.
    pub(crate) fn record(&self) -> PathBuf {
        self.path.with_extension("json")
    }

    fn parse(name: String, path: &Path, text: &str) -> Result<Self, String> {
        let mut options = Options {
            dockerfile: "Dockerfile".to_owned(),
            ..Options::default()
        };
        let mut files: Vec<(String, String)> = Vec::new();
        for line in text.split_inclusive('\n') {
            let mark = line
                .trim_end()
                .strip_prefix("-- ")
                .and_then(|rest| rest.strip_suffix(" --"));
            match (mark, files.last_mut()) {
                (Some(mark), _) => files.push((mark.to_owned(), String::new())),
                (None, Some((_, text))) => text.push_str(line),
                (None, None) => {
                    if let Some(args) = line.strip_prefix("args:") {
                        arguments(args, &mut options)?;
                    }
                }
            }
        }
        for (mark, _) in &files {
            if let Some(context) = mark
                .strip_prefix('@')
                .and_then(|rest| rest.split('/').next())
                && !options.contexts.iter().any(|known| known == context)
            {
                options.contexts.push(context.to_owned());
            }
        }
        Ok(Self {
            name,
            path: path.to_owned(),
            options,
            files,
            folder: None,
        })
    }

    /// Makes the context, and each named context, below `folder`.
    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        if let Some(context) = &self.folder {
            return copy(context, &folder.join("context"));
        }
        fs::create_dir_all(folder.join("context"))?;
        // Modes of folders last, since they may forbid what comes after.
        let mut modes = Vec::new();
        for (mark, text) in &self.files {
            let mut words = mark.split_whitespace();
            let name = words.next().unwrap_or_default();
            let path = match name.strip_prefix('@') {
                Some(name) => folder.join(name),
                None => folder.join("context").join(name),
            };
            let rest: Vec<&str> = words.collect();
            if name.ends_with('/') {
                fs::create_dir_all(&path)?;
                modes.push((path, mode(&rest).unwrap_or(0o755)));
                continue;
            }
            let parent = path.parent().unwrap_or(folder);
            let mut missing: Vec<&Path> = parent
                .ancestors()
                .take_while(|above| !above.exists())
                .collect();
            missing.reverse();
            for above in missing {
                fs::create_dir(above)?;
                fs::set_permissions(above, PermissionsExt::from_mode(0o755))?;
            }
            match &rest[..] {
                ["->", target] => symlink(target, &path)?,
                ["=", other] => fs::hard_link(folder.join("context").join(other), &path)?,
                ["|"] => rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o644.into())?,
                attributes => {
                    let mut text = text.clone();
                    if attributes.contains(&"bare") {
                        text.truncate(text.trim_end_matches('\n').len());
                    }
                    if attributes.contains(&"crlf") {
                        text = text.replace('\n', "\r\n");
                    }
                    if attributes.contains(&"bom") {
                        text.insert(0, '\u{feff}');
                    }
                    let bytes = if attributes.contains(&"base64") {
                        decode(&text)
                    } else {
                        text.into_bytes()
                    };
                    fs::write(&path, bytes)?;
                    let mode = mode(attributes).unwrap_or(0o644);
                    fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
                }
            }
        }
        for (path, mode) in modes {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        Ok(())
    }
}

fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in text.bytes() {
        let Some(digit) = DIGITS.iter().position(|digit| *digit == c) else {
            continue;
        };
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let there = fs::symlink_metadata(from)?;
    if there.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if !there.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    fs::set_permissions(to, there.permissions())
}

fn mode(attributes: &[&str]) -> Option<u32> {
    attributes
        .iter()
        .find_map(|word| u32::from_str_radix(word, 8).ok())
}

fn arguments(text: &str, options: &mut Options) -> Result<(), String> {
    let mut words = text.split_whitespace();
    while let Some(name) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("`{name}` has no value"))?
            .to_owned();
        match name {
            "--build-arg" => options.build_args.push(value),
            "--target" => options.target = Some(value),
            "--file" => options.dockerfile = value,
            "--secret" => options.secrets.push(value),
            _ => return Err(format!("`{name}` is not known here")),
        }
    }
    Ok(())
}

/// All cases below `folder`, in order.
pub(crate) fn read(folder: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut areas: Vec<PathBuf> = list(folder);
    areas.retain(|path| path.is_dir());
    for area in areas {
        for path in list(&area) {
            let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
            let name = format!("{}/{}", stem(&area), stem(&path));
            if path.join("Dockerfile").is_file() {
                let mut case = Case::parse(name, &path, "").unwrap();
                case.folder = Some(path);
                cases.push(case);
                continue;
            }
            if path.extension().is_none_or(|end| end != "case") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            match Case::parse(name, &path, &text) {
                Ok(case) => cases.push(case),
                Err(what) => panic!("{}: {what}", path.display()),
            }
        }
    }
    cases
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}
