//! What a repository is asked for: the commit that a reference names, and that commit's pack.

use crate::access::{Access, Origin, Trust};
use crate::error::GitError;
use crate::object::Oid;
use crate::pack::Pack;
use crate::pkt_line::{Line, Lines, line, packfile};
use crate::protocol::REFS_MAX;
use crate::reference::{Reference, Resolved};
use crate::source::GitSource;

impl GitSource {
    /// The commit that the reference names now. Only a whole name of a commit is known without asking.
    pub fn resolve(&self, access: Access<'_>) -> Result<Resolved, GitError> {
        let found = self.named(access)?;
        match &self.checksum {
            Some(wanted) if !Self::is_wanted(wanted, &found) => Err(self.error(format!(
                "it is the commit {} now, and its address wants {wanted}",
                found.commit
            ))),
            _ => Ok(found),
        }
    }

    fn named(&self, access: Access<'_>) -> Result<Resolved, GitError> {
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

    /// The pack of one commit, of at most `limit` bytes.
    pub(crate) fn pack(
        &self,
        found: &Resolved,
        trust: Trust<'_>,
        limit: u64,
        work: u64,
    ) -> Result<Pack, GitError> {
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
