//! What a test says of files and packages, looked up in the mounted image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use kiln_model::{FileCheck, TestSpec, TextCheck};
use rustix::fs::OFlags;

use super::subject::SAID_MAX;
use super::text::text_failures;
use crate::debian::status;
use crate::in_root;

/// A passwd file of a real image is a few kilobytes.
const NAMES_MAX: u64 = 1 << 20;

pub(super) fn check(root: &Path, test: &TestSpec) -> io::Result<Vec<String>> {
    let mut failures = Vec::new();
    for path in &test.present {
        if !is_there(root, path, OFlags::PATH)? {
            failures.push(format!("{path} is not there"));
        }
    }
    for path in &test.absent {
        if is_there(root, path, OFlags::PATH | OFlags::NOFOLLOW)? {
            failures.push(format!("{path} is there"));
        }
    }
    for (path, check) in &test.files {
        failures.extend(file(root, path, check)?);
    }
    if !(test.packages.is_empty() && test.packages_absent.is_empty()) {
        let installed: BTreeSet<String> = status::installed(root)?
            .into_iter()
            .map(|package| package.name)
            .collect();
        for name in test
            .packages
            .iter()
            .filter(|name| !installed.contains(*name))
        {
            failures.push(format!("the package {name} is not installed"));
        }
        let unwanted = test.packages_absent.iter();
        for name in unwanted.filter(|name| installed.contains(*name)) {
            failures.push(format!("the package {name} is installed"));
        }
    }
    Ok(failures)
}

fn is_there(root: &Path, path: &str, flags: OFlags) -> io::Result<bool> {
    match in_root::open(root, Path::new(path), flags) {
        Ok(_) => Ok(true),
        Err(error) if in_root::is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn file(root: &Path, path: &str, check: &FileCheck) -> io::Result<Vec<String>> {
    let FileCheck {
        owner,
        group,
        mode,
        content,
    } = check;
    let there = match in_root::open(root, Path::new(path), OFlags::PATH) {
        Ok(there) => rustix::fs::fstat(there)?,
        Err(error) if in_root::is_absent(&error) => {
            return Ok(vec![format!("{path} is not there")]);
        }
        Err(error) => return Err(error),
    };
    let mut failures = Vec::new();
    for (what, wanted, found, names) in [
        ("owner", owner, there.st_uid, "etc/passwd"),
        ("group", group, there.st_gid, "etc/group"),
    ] {
        let Some(wanted) = wanted else { continue };
        let number = match wanted.parse() {
            Ok(number) => Some(number),
            Err(_) => number_of(root, names, wanted)?,
        };
        match number {
            None => failures.push(format!(
                "/{names} has no `{wanted}`, which is to be the {what} of {path}"
            )),
            Some(number) if number != found => {
                failures.push(format!(
                    "the {what} of {path} is {found}, and {wanted} is expected"
                ));
            }
            Some(_) => {}
        }
    }
    let bits = there.st_mode & 0o7777;
    if let Some(wanted) = mode.filter(|wanted| *wanted != bits) {
        failures.push(format!(
            "the mode of {path} is {bits:04o}, and {wanted:04o} is expected"
        ));
    }
    if *content != TextCheck::default() {
        // A named pipe would otherwise be waited for.
        let opened = in_root::open(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK)?;
        let opened = File::from(opened);
        if opened.metadata()?.is_file() {
            let mut bytes = Vec::new();
            opened.take(SAID_MAX as u64).read_to_end(&mut bytes)?;
            let text = String::from_utf8_lossy(&bytes);
            failures.extend(text_failures(
                &format!("the content of {path}"),
                &text,
                content,
            ));
        } else {
            failures.push(format!("{path} is no file"));
        }
    }
    Ok(failures)
}

/// Of a user or a group, by the image's own names.
fn number_of(root: &Path, names: &str, wanted: &str) -> io::Result<Option<u32>> {
    let text = in_root::text(root, Path::new(names), NAMES_MAX)?.unwrap_or_default();
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(lines
        .find(|fields| fields.len() > 2 && fields[0] == wanted)
        .and_then(|fields| fields[2].parse().ok()))
}
