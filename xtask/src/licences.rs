//! `check-licences`: what kiln links must be usable by everyone, so every dependency's licence expression
//! has to be satisfiable by a short list of permissive licences.
//!
//! MPL-2.0 is left out on purpose: it is copyleft by file, and nothing that kiln needs is under it alone.

use crate::metadata::{Follow, Metadata, MetadataError};

/// SPDX identifiers; an exception is allowed with the licence it is written for.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "bzip2-1.0.6",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum LicencesError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{} with a licence that is not allowed:\n{}\nallowed: {}", count(.0.len()), .0.join("\n"), ALLOWED.join(", "))]
    NotAllowed(Vec<String>),
}

fn count(packages: usize) -> String {
    match packages {
        1 => "1 package".to_owned(),
        more => format!("{more} packages"),
    }
}

/// How many packages were looked at.
pub(crate) fn check() -> Result<usize, LicencesError> {
    let metadata = Metadata::load()?;
    let reached = metadata.reached("kiln", Follow::NormalAndBuild)?;
    let mut refused = Vec::new();
    for (package, path) in &reached {
        let fault = match &package.license {
            None => Some("no `license` in its manifest".to_owned()),
            Some(text) => match satisfiable(text) {
                Ok(true) => None,
                Ok(false) => Some(text.clone()),
                Err(error) => Some(format!("`{text}`: {error}")),
            },
        };
        if let Some(fault) = fault {
            refused.push(format!(
                "  {} {}: {fault} (by {})",
                package.name,
                package.version,
                path.join(" -> ")
            ));
        }
    }
    if refused.is_empty() {
        Ok(reached.len())
    } else {
        Err(LicencesError::NotAllowed(refused))
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ExpressionError {
    #[error("ends where a licence was expected")]
    Ends,
    #[error("`{0}` where a licence was expected")]
    NotALicence(String),
    #[error("`{0}` after a whole expression")]
    Trailing(String),
    #[error("a parenthesis is not closed")]
    Open,
}

/// Whether some choice of the expression is made of allowed licences alone (SPDX 2.3, annex D; `/` is the
/// old form of OR).
fn satisfiable(text: &str) -> Result<bool, ExpressionError> {
    let spaced = text
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens };
    let allowed = parser.alternatives()?;
    match parser.tokens.first() {
        None => Ok(allowed),
        Some(token) => Err(ExpressionError::Trailing((*token).to_owned())),
    }
}

struct Parser<'a> {
    tokens: &'a [&'a str],
}

impl Parser<'_> {
    fn eat(&mut self, keyword: &str) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if first.eq_ignore_ascii_case(keyword) => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn alternatives(&mut self) -> Result<bool, ExpressionError> {
        let mut allowed = self.conjunction()?;
        while self.eat("OR") {
            allowed |= self.conjunction()?;
        }
        Ok(allowed)
    }

    fn conjunction(&mut self) -> Result<bool, ExpressionError> {
        let mut allowed = self.licence()?;
        while self.eat("AND") {
            allowed &= self.licence()?;
        }
        Ok(allowed)
    }

    fn licence(&mut self) -> Result<bool, ExpressionError> {
        if self.eat("(") {
            let allowed = self.alternatives()?;
            return if self.eat(")") {
                Ok(allowed)
            } else {
                Err(ExpressionError::Open)
            };
        }
        let mut licence = self.identifier()?.to_owned();
        if self.eat("WITH") {
            licence = format!("{licence} WITH {}", self.identifier()?);
        }
        Ok(ALLOWED.contains(&licence.as_str()))
    }

    fn identifier(&mut self) -> Result<&str, ExpressionError> {
        let (first, rest) = self.tokens.split_first().ok_or(ExpressionError::Ends)?;
        if ["AND", "OR", "WITH", "(", ")"]
            .iter()
            .any(|keyword| keyword.eq_ignore_ascii_case(first))
        {
            return Err(ExpressionError::NotALicence((*first).to_owned()));
        }
        self.tokens = rest;
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_judged_by_its_best_choice() {
        for (text, allowed) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            ("MPL-2.0", false),
            // AND binds tighter than OR.
            ("MIT OR Apache-2.0 AND AGPL-3.0-only", true),
            ("(MIT OR Apache-2.0) AND AGPL-3.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            // An exception does not make its licence another one.
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
            ("MIT WITH Classpath-exception-2.0", false),
            ("LGPL-2.1-or-later", false),
        ] {
            assert_eq!(satisfiable(text), Ok(allowed), "{text}");
        }
    }

    #[test]
    fn a_broken_expression_is_never_taken_for_an_allowed_one() {
        for (text, error) in [
            ("", ExpressionError::Ends),
            ("MIT OR", ExpressionError::Ends),
            ("(MIT", ExpressionError::Open),
            (
                "MIT Apache-2.0",
                ExpressionError::Trailing("Apache-2.0".to_owned()),
            ),
            (
                "MIT AND OR ISC",
                ExpressionError::NotALicence("OR".to_owned()),
            ),
        ] {
            assert_eq!(satisfiable(text), Err(error), "{text}");
        }
    }
}
