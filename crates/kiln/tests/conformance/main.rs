//! Dockerfiles baked by kiln and by BuildKit: the same files, the same configuration, the same refusals.
//!
//! What BuildKit makes of each case is kept beside it (`NAME.json`), so that the comparison needs no BuildKit. With
//! `KILN_PEER=FOLDER`, where buildkitd and buildctl are, it is asked itself too, and a record that is not what it says fails the
//! case; `KILN_PEER_RECORD=all` writes the records anew instead, `=new` those that are not there. `KILN_CASES=FOLDER` is
//! for Dockerfiles of other people. `cargo xtask conformance` sets all of them; see docs/testing.md.

#![allow(clippy::disallowed_methods)] // waits for the peer have deadlines

mod bases;
mod case;
mod differences;
mod outcome;
mod peer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Deserialize, Serialize};

use bases::{Bases, NAMES};
use case::Case;
use outcome::Outcome;
use peer::Peer;

/// A case's `.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Who said it.
    peer: String,
    outcome: Outcome,
}

struct World {
    root: PathBuf,
    bases: Bases,
    peer: Option<Peer>,
    record: Recording,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Recording {
    None,
    New,
    All,
}

impl Recording {
    fn asked() -> Self {
        match std::env::var("KILN_PEER_RECORD").as_deref() {
            Err(_) => Self::None,
            Ok("new") => Self::New,
            Ok("all") => Self::All,
            Ok(other) => panic!("KILN_PEER_RECORD={other}: it is `new` or `all`"),
        }
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases");
    let other = std::env::var_os("KILN_CASES").map(PathBuf::from);
    let cases = case::read(other.as_deref().unwrap_or(&own));
    let unknown = match other {
        Some(_) => Vec::new(),
        None => differences::unknown(&cases),
    };
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    // Listing needs neither root nor the bases.
    let world = (!arguments.list).then(|| {
        let bases = Bases::make(&root, &temp.path().join("layouts"));
        let peer = std::env::var_os("KILN_PEER")
            .map(|programs| Peer::start(Path::new(&programs), &temp.path().join("peer")));
        let record = Recording::asked();
        assert!(
            peer.is_some() || record == Recording::None,
            "KILN_PEER_RECORD needs KILN_PEER: the folder with buildkitd and buildctl"
        );
        Arc::new(World {
            root,
            bases,
            peer,
            record,
        })
    });
    let mut trials: Vec<Trial> = cases
        .into_iter()
        .map(|case| {
            let world = world.clone();
            let work = temp.path().join("cases").join(case.name.replace('/', "-"));
            Trial::test(case.name.clone(), move || {
                let result = match &world {
                    Some(world) => world.compare(&case, &work),
                    None => Ok(()),
                };
                let _ = fs::remove_dir_all(&work);
                result.map_err(Failed::from)
            })
        })
        .collect();
    trials.push(Trial::test(
        "differences_are_of_cases",
        move || match &unknown[..] {
            [] => Ok(()),
            names => Err(format!("no such cases: {}", names.join(", ")).into()),
        },
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(world);
    drop(temp);
    conclusion.exit();
}

impl World {
    fn compare(&self, case: &Case, work: &Path) -> Result<(), String> {
        case.write(work)
            .map_err(|error| format!("the context can't be made: {error}"))?;
        let path = case.record();
        let is_recorded = path.exists();
        if let Some(peer) = &self.peer
            && !(self.record == Recording::New && is_recorded)
        {
            let outcome = peer.bake(case, work, &self.bases);
            if self.record != Recording::None {
                let record = Record {
                    peer: peer.version.clone(),
                    outcome,
                };
                let mut text = serde_json::to_string_pretty(&record).unwrap();
                text.push('\n');
                fs::write(&path, text).map_err(|error| error.to_string())?;
            } else {
                let found = outcome::differences(&read(&path)?, &outcome);
                if !found.is_empty() {
                    return Err(format!(
                        "the peer ({}) makes another thing of it than the record says: {found:#?}",
                        peer.version
                    ));
                }
            }
        }
        let recorded = read(&path)?;
        let baked = self.bake(case, work)?;
        let mut found = outcome::differences(&recorded, &baked);
        let mut wrong = String::new();
        for (what, why) in differences::of(&case.name) {
            if found.remove(what).is_none() {
                wrong.push_str(&format!(
                    "`{what}` no longer differs: take it out of differences.rs ({why})\n"
                ));
            }
        }
        for (what, (peer, kiln)) in found {
            wrong.push_str(&format!("{what}\n  peer: {peer}\n  kiln: {kiln}\n"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn bake(&self, case: &Case, work: &Path) -> Result<Outcome, String> {
        let context = work.join("context");
        let out = work.join("kiln.tar");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .env_clear()
            .env("KILN_ROOT", &self.root)
            .current_dir(&context)
            .args(["bake", "--dockerfile", &case.options.dockerfile])
            .args(["--tag", &format!("{}:1", case.name)])
            .args(["--output", &format!("docker-archive:{}", out.display())]);
        for name in NAMES {
            command.args(["--base", &format!("{name}={name}:latest")]);
        }
        for arg in &case.options.build_args {
            command.args(["--build-arg", arg]);
        }
        if let Some(target) = &case.options.target {
            command.args(["--target", target]);
        }
        for name in &case.options.contexts {
            let folder = work.join(name);
            command.args(["--build-context", &format!("{name}={}", folder.display())]);
        }
        for secret in &case.options.secrets {
            command.args(["--secret", secret]);
        }
        let output = command
            .arg(".")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => outcome::read(&out)
                .map_err(|error| format!("kiln's archive can't be read: {error}")),
            // A store that is full, for example, is no answer about the Dockerfile.
            Some(1) if said.contains("--> Dockerfile") || said.contains(".dockerignore: ") => {
                Ok(Outcome::Refused { says: said })
            }
            Some(1) => Err(format!(
                "kiln refused, and named no place of the Dockerfile: {said}"
            )),
            // A usage error is a mistake of the case, and a panic one of kiln.
            code => Err(format!("kiln ended with {code:?}: {said}")),
        }
    }
}

fn read(path: &Path) -> Result<Outcome, String> {
    let text = fs::read_to_string(path).map_err(|error| {
        format!(
            "{}: {error}; `cargo xtask conformance --record` writes it",
            path.display()
        )
    })?;
    let record: Record =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(record.outcome)
}
