//! Git repositories of the network, for ADD and contexts: one commit's files, by the smart protocol's version 2 (gitprotocol-v2(5)).
//!
//! Only that commit comes, without its history, and those of its submodules. What comes is known by Git's own names, which are
//! checked.

mod checkout;
mod kept;
mod modules;
pub mod object;
mod pack;
mod packets;
mod source;
mod ssh;
mod stream;
mod transport;

use std::fmt;
use std::path::Path;

use crate::error::BakeError;
use crate::remote::without_user;
pub(crate) use object::Oid;
use pack::Pack;
use packets::{Line, Lines, line, packfile};
pub(crate) use source::GitSource;
use stream::REFS_MAX;
pub(crate) use transport::Access;
use transport::{Origin, Trust};

/// Held in memory while its files are written.
const PACK_MAX: u64 = 2 << 30;

/// What a reference names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) commit: Oid,
    /// The annotated tag that names the commit.
    pub(crate) tag: Option<Oid>,
    /// Such as `refs/heads/main`; none for a whole name of a commit.
    pub(crate) name: Option<String>,
}

/// A line of an answer to `ls-refs`.
struct Reference {
    oid: Oid,
    name: String,
    peeled: Option<Oid>,
    /// What HEAD stands for.
    target: Option<String>,
}

impl Reference {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim_end().split(' ');
        let (oid, name) = (Oid::parse(words.next()?)?, words.next()?.to_owned());
        let (mut peeled, mut target) = (None, None);
        for word in words {
            if let Some(oid) = word.strip_prefix("peeled:") {
                peeled = Oid::parse(oid);
            } else if let Some(name) = word.strip_prefix("symref-target:") {
                target = Some(name.to_owned());
            }
        }
        Some(Self {
            oid,
            name,
            peeled,
            target,
        })
    }

    fn resolved(self) -> Resolved {
        Resolved {
            commit: self.peeled.unwrap_or(self.oid),
            tag: self.peeled.map(|_| self.oid),
            name: Some(self.target.unwrap_or(self.name)),
        }
    }
}

impl GitSource {
    fn error(&self, reason: impl fmt::Display) -> BakeError {
        BakeError::Git {
            url: without_user(&self.url),
            reason: reason.to_string(),
        }
    }

    /// The commit that the reference names now. Only a whole name of a commit is known without asking.
    pub(crate) fn resolve(&self, access: Access<'_>) -> Result<Resolved, BakeError> {
        let found = self.named(access)?;
        match &self.checksum {
            Some(wanted) if !Self::is_wanted(wanted, &found) => Err(self.error(format!(
                "it is the commit {} now, and its address wants {wanted}",
                found.commit
            ))),
            _ => Ok(found),
        }
    }

    fn named(&self, access: Access<'_>) -> Result<Resolved, BakeError> {
        if let Some(commit) = Oid::parse(&self.reference) {
            return Ok(Resolved {
                commit,
                tag: None,
                name: None,
            });
        }
        let origin = Origin::of(&self.url);
        let repository = self.open(Trust {
            access,
            origin: &origin,
        })?;
        let wanted = match self.reference.as_str() {
            "" => vec!["HEAD".to_owned()],
            name if name.starts_with("refs/") => vec![name.to_owned()],
            // A branch before a tag of its name, as git's checkout has it.
            name => ["refs/", "refs/heads/", "refs/tags/"]
                .map(|kind| format!("{kind}{name}"))
                .to_vec(),
        };
        let mut request = Vec::new();
        line(&mut request, "command=ls-refs\n");
        request.extend(b"0001");
        line(&mut request, "peel\n");
        line(&mut request, "symrefs\n");
        for name in &wanted {
            line(&mut request, &format!("ref-prefix {name}\n"));
        }
        request.extend(b"0000");
        let answer = repository.ask(self, &request, REFS_MAX)?;
        let mut found = Vec::new();
        for line in Lines(&answer) {
            let line = line.map_err(|problem| self.error(problem))?;
            if let Line::Text(text) = line {
                found.extend(Reference::parse(&String::from_utf8_lossy(text)));
            }
        }
        let place = wanted
            .iter()
            .find_map(|name| found.iter().position(|known| known.name == *name));
        match (place, self.reference.as_str()) {
            (Some(place), _) => Ok(found.swap_remove(place).resolved()),
            (None, "") => Err(self.error("it has no commit yet")),
            (None, name) => Err(self.error(format!(
                "it has no branch and no tag `{name}`, which is no whole name of a commit either"
            ))),
        }
    }

    /// Writes the files of what was resolved into `to`, an empty folder; with `keep`, `.git` as well.
    pub(crate) fn check_out(
        &self,
        found: &Resolved,
        keep: bool,
        to: &Path,
        access: Access<'_>,
    ) -> Result<(), BakeError> {
        let origin = Origin::of(&self.url);
        let trust = Trust {
            access,
            origin: &origin,
        };
        // As BuildKit has it, a part of a repository is none.
        let keep = keep && folders(&self.folder).next().is_none();
        checkout::Checkout::new(trust, keep).write(self, found, to)
    }

    /// The pack of one commit, of at most `limit` bytes.
    fn pack(
        &self,
        found: &Resolved,
        trust: Trust<'_>,
        limit: u64,
        work: u64,
    ) -> Result<Pack, BakeError> {
        let repository = self.open(trust)?;
        let mut request = Vec::new();
        line(&mut request, "command=fetch\n");
        request.extend(b"0001");
        for argument in ["no-progress", "ofs-delta", "deepen 1"] {
            line(&mut request, &format!("{argument}\n"));
        }
        let wanted = found.tag.unwrap_or(found.commit);
        line(&mut request, &format!("want {wanted}\n"));
        line(&mut request, "done\n");
        request.extend(b"0000");
        let answer = repository.ask(self, &request, limit)?;
        let pack = packfile(answer).map_err(|problem| self.error(problem))?;
        Pack::read(pack, work).map_err(|problem| self.error(problem))
    }
}

/// The names of a path's folders.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}
