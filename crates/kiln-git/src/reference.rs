//! What the names of a repository stand for.

use crate::object::Oid;

/// What a reference names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub commit: Oid,
    /// The annotated tag that names the commit.
    pub tag: Option<Oid>,
    /// Such as `refs/heads/main`; none for a whole name of a commit.
    pub name: Option<String>,
}

/// A line of an answer to `ls-refs`.
pub(crate) struct Reference {
    oid: Oid,
    pub(crate) name: String,
    peeled: Option<Oid>,
    /// What HEAD stands for.
    target: Option<String>,
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Option<Self> {
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

    pub(crate) fn resolved(self) -> Resolved {
        Resolved {
            commit: self.peeled.unwrap_or(self.oid),
            tag: self.peeled.map(|_| self.oid),
            name: Some(self.target.unwrap_or(self.name)),
        }
    }
}
